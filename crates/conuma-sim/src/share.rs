//! Dividing by weight: in parts of a core, and in whole cores.

/// What someone should get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim {
    /// At least so much, if all floors fit.
    pub floor: f64,
    /// At most so much.
    pub cap: f64,
    /// In this proportion above the floors.
    pub weight: f64,
}

/// Weighted max-min fairness: floors first, then what is left by weight, none above its cap.
pub fn fill(total: f64, claims: &[Claim]) -> Vec<f64> {
    let mut given: Vec<f64> = claims.iter().map(|claim| claim.floor.min(claim.cap).max(0.0)).collect();
    let floors: f64 = given.iter().sum();
    if floors > total {
        return given.iter().map(|floor| floor * total / floors).collect();
    }
    let mut rest = total - floors;
    // Each round serves someone wholly or ends.
    for _ in 0..=claims.len() {
        let open = |place: usize| claims[place].cap - given[place] > 1e-9;
        let weight: f64 = (0..claims.len()).filter(|place| open(*place)).map(|place| claims[place].weight).sum();
        if rest <= 1e-9 || weight <= 0.0 {
            break;
        }
        let parts: Vec<f64> = (0..claims.len())
            .map(|place| {
                let part = if open(place) { rest * claims[place].weight / weight } else { 0.0 };
                part.min((claims[place].cap - given[place]).max(0.0))
            })
            .collect();
        for (sum, part) in given.iter_mut().zip(&parts) {
            *sum += part;
            rest -= part;
        }
    }
    given
}

/// The same in whole cores: what is left over goes to those that lost most by rounding.
pub fn fill_whole(total: usize, claims: &[Claim]) -> Vec<usize> {
    let exact = fill(total as f64, claims);
    let mut given: Vec<usize> = exact.iter().map(|part| (part + 1e-6).floor() as usize).collect();
    let mut rest = total.saturating_sub(given.iter().sum());
    let mut order: Vec<usize> = (0..claims.len()).collect();
    let lost = |place: usize| exact[place] - exact[place].floor();
    order.sort_by(|a, b| lost(*b).total_cmp(&lost(*a)));
    for place in order {
        if rest > 0 && (given[place] as f64) + 1.0 <= claims[place].cap + 1e-9 && lost(place) > 1e-6 {
            given[place] += 1;
            rest -= 1;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(floor: f64, cap: f64, weight: f64) -> Claim {
        Claim { floor, cap, weight }
    }

    #[test]
    fn floors_come_first_then_weights_and_caps_hold() {
        assert_eq!(fill(12.0, &[claim(2.0, 99.0, 1.0), claim(4.0, 99.0, 2.0)]), [4.0, 8.0]);
        assert_eq!(fill(12.0, &[claim(0.0, 3.0, 1.0), claim(0.0, 99.0, 1.0)]), [3.0, 9.0]);
        assert_eq!(fill(6.0, &[claim(4.0, 9.0, 1.0), claim(8.0, 9.0, 1.0)]), [2.0, 4.0], "floors that do not fit");
    }

    #[test]
    fn whole_cores_are_all_given_out() {
        let given = fill_whole(10, &[claim(1.0, 99.0, 1.0), claim(1.0, 99.0, 1.0), claim(1.0, 99.0, 1.0)]);
        assert_eq!(given.iter().sum::<usize>(), 10);
        assert!(given.iter().all(|cores| (3..=4).contains(cores)), "{given:?}");
    }
}
