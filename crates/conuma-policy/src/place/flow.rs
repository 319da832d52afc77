//! How many cores of each VM on each node, at the least cost.
//!
//! Starts from what is held. Every core that is missing comes by a shortest path: onto a node, from which another VM may move to a next
//! node, and so on to a free core. Then, as long as there is a circle of moves that saves something, it is gone. Costs are convex in the
//! number of cores a VM has on a node, so where no circle is left no better division of the same numbers exists.

use super::Grid;

/// Less is no saving.
const SAVES: f64 = 1e-9;

/// Circles that are taken out at most, for each node: what is left is for the next decision, as so many moves at once would do
/// more harm than good.
const CIRCLES: usize = 8;

/// Counts by tenant and node.
pub(super) fn solve(grid: &Grid) -> Vec<Vec<usize>> {
    solve_within(grid, grid.nodes.len() * CIRCLES)
}

fn solve_within(grid: &Grid, circles: usize) -> Vec<Vec<usize>> {
    let mut flow = Flow::new(grid);
    flow.release();
    flow.look();
    for row in 0..grid.rows.len() {
        while flow.missing(row) > 0 && flow.bring(row) {}
    }
    for _ in 0..circles {
        if !flow.improve() {
            break;
        }
    }
    flow.counts
}

struct Flow<'a> {
    grid: &'a Grid,
    counts: Vec<Vec<usize>>,
    /// Cores of each node that nobody has.
    free: Vec<usize>,
    /// The cheapest move of any VM from a node to another, and whose.
    edges: Vec<Vec<Edge>>,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    cost: f64,
    row: usize,
}

const NO_EDGE: Edge = Edge { cost: f64::INFINITY, row: usize::MAX };

impl<'a> Flow<'a> {
    fn new(grid: &'a Grid) -> Self {
        let places = grid.nodes.len();
        let held = |row: &super::Row, node: usize| row.held.get(node).map_or(0, |held| (*held).min(row.most[node]));
        let counts: Vec<Vec<usize>> =
            grid.rows.iter().map(|row| (0..places).map(|node| held(row, node)).collect()).collect();
        let taken = |node: usize| counts.iter().map(|counts: &Vec<usize>| counts[node]).sum::<usize>();
        let free = (0..places).map(|node| grid.free[node].saturating_sub(taken(node))).collect();
        Self { grid, counts, free, edges: vec![vec![NO_EDGE; places]; places] }
    }

    fn cost(&self, row: usize, node: usize, k: usize) -> f64 {
        self.grid.rows[row].cost(node, k)
    }

    /// What one core more on a node costs a VM.
    fn more(&self, row: usize, node: usize) -> f64 {
        self.cost(row, node, self.counts[row][node] + 1)
    }

    /// What its last core there costs it.
    fn last(&self, row: usize, node: usize) -> f64 {
        self.cost(row, node, self.counts[row][node])
    }

    fn missing(&self, row: usize) -> usize {
        self.grid.rows[row].count.saturating_sub(self.counts[row].iter().sum())
    }

    /// VMs that hold more than they should give what costs them most, and from where they have least if that makes no difference.
    fn release(&mut self) {
        for row in 0..self.counts.len() {
            let mut over = self.counts[row].iter().sum::<usize>().saturating_sub(self.grid.rows[row].count);
            while over > 0 {
                let used = (0..self.free.len()).filter(|node| self.counts[row][*node] > 0);
                let worst = used.max_by(|a, b| {
                    let by_cost = self.last(row, *a).total_cmp(&self.last(row, *b));
                    by_cost.then(self.counts[row][*b].cmp(&self.counts[row][*a])).then(a.cmp(b))
                });
                let Some(node) = worst else { break };
                self.counts[row][node] -= 1;
                self.free[node] += 1;
                over -= 1;
            }
        }
    }

    /// Looks for the cheapest move between any two nodes.
    fn look(&mut self) {
        for row in 0..self.counts.len() {
            self.changed(row);
        }
    }

    /// What a move of a core of this VM from a node to another costs.
    fn step(&self, row: usize, from: usize, to: usize) -> f64 {
        if self.counts[row][from] == 0 { f64::INFINITY } else { self.more(row, to) - self.last(row, from) }
    }

    /// A VM has other cores than before: its moves cost something else.
    fn changed(&mut self, row: usize) {
        if self.grid.rows[row].most.is_empty() {
            return;
        }
        let places = self.free.len();
        let more: Vec<f64> = (0..places).map(|node| self.more(row, node)).collect();
        for a in 0..places {
            let last = (self.counts[row][a] > 0).then(|| self.last(row, a));
            for b in (0..places).filter(|b| *b != a) {
                let cost = last.map_or(f64::INFINITY, |last| more[b] - last);
                let edge = self.edges[a][b];
                if cost < edge.cost || (edge.row == row && cost == edge.cost) {
                    self.edges[a][b] = Edge { cost, row };
                } else if edge.row == row {
                    self.edges[a][b] = self.cheapest(a, b);
                }
            }
        }
    }

    fn cheapest(&self, a: usize, b: usize) -> Edge {
        let movable = (0..self.counts.len()).filter(|row| self.counts[*row][a] > 0);
        movable.fold(NO_EDGE, |best, row| {
            let cost = self.step(row, a, b);
            if cost < best.cost { Edge { cost, row } } else { best }
        })
    }

    /// One core more for a VM; whether there was one.
    fn bring(&mut self, row: usize) -> bool {
        let places = self.free.len();
        let enter: Vec<f64> = (0..places).map(|node| self.more(row, node)).collect();
        let cheapest = enter.iter().copied().fold(f64::INFINITY, f64::min);
        // Most often the best node has one.
        let open = (0..places).filter(|node| self.free[*node] > 0 && enter[*node].is_finite());
        let direct = open.min_by(|a, b| {
            let most_free = self.free[*b].cmp(&self.free[*a]);
            enter[*a].total_cmp(&enter[*b]).then(self.counts[row][*b].cmp(&self.counts[row][*a])).then(most_free)
        });
        if let Some(node) = direct
            && enter[node] <= cheapest + SAVES
        {
            self.counts[row][node] += 1;
            self.free[node] -= 1;
            self.changed(row);
            return true;
        }
        // Shortest paths from outside, through nodes that VMs leave for others, to one with a free core.
        let (mut reach, mut from) = (enter, vec![None; places]);
        for _ in 0..places {
            let mut changed = false;
            for a in 0..places {
                for b in 0..places {
                    let through = reach[a] + self.edges[a][b].cost;
                    if through + SAVES < reach[b] {
                        (reach[b], from[b], changed) = (through, Some(a), true);
                    }
                }
            }
            if !changed {
                break;
            }
        }
        let ends = (0..places).filter(|node| self.free[*node] > 0 && reach[*node].is_finite());
        let Some(end) = ends.min_by(|a, b| reach[*a].total_cmp(&reach[*b])) else { return false };
        let mut path = vec![end];
        while let Some(before) = from[path[path.len() - 1]] {
            if path.contains(&before) {
                // A circle that saves: `improve` takes it out.
                break;
            }
            path.push(before);
        }
        let steps: Vec<(usize, usize, usize)> =
            path.windows(2).map(|pair| (self.edges[pair[1]][pair[0]].row, pair[1], pair[0])).collect();
        self.free[end] -= 1;
        self.counts[row][path[path.len() - 1]] += 1;
        for (mover, a, b) in &steps {
            self.shift(*mover, *a, *b);
        }
        self.changed(row);
        for (mover, ..) in steps {
            self.changed(mover);
        }
        true
    }

    fn shift(&mut self, row: usize, from: usize, to: usize) {
        self.counts[row][from] -= 1;
        self.counts[row][to] += 1;
    }

    /// Takes out one circle of moves that saves; whether there was one. A free core closes a circle as a VM without preferences does.
    fn improve(&mut self) -> bool {
        let Some(circle) = self.circle() else { return false };
        // A VM that is in it twice may cost more than was counted: what it comes to is seen when it is done.
        let (mut saved, mut done) = (0.0, Vec::new());
        for (a, b) in circle {
            match self.mover(a, b) {
                Some(row) if self.counts[row][a] > 0 => {
                    saved -= self.step(row, a, b);
                    self.shift(row, a, b);
                    done.push((Some(row), a, b));
                }
                None if self.free[a] > 0 => {
                    self.free[a] -= 1;
                    self.free[b] += 1;
                    done.push((None, a, b));
                }
                _ => saved = f64::NEG_INFINITY,
            }
        }
        let worth = saved > SAVES;
        for (row, a, b) in done.into_iter().rev() {
            match row {
                Some(row) if worth => self.changed(row),
                Some(row) => self.shift(row, b, a),
                None if worth => {}
                None => {
                    self.free[b] -= 1;
                    self.free[a] += 1;
                }
            }
        }
        worth
    }

    /// Who moves from `a` to `b` at the least cost; `None`: a free core goes there, at no cost.
    fn mover(&self, a: usize, b: usize) -> Option<usize> {
        let edge = self.edges[a][b];
        (self.free[a] == 0 || edge.cost < 0.0).then_some(edge.row).filter(|row| *row != usize::MAX)
    }

    /// What the cheapest move from `a` to `b` costs, that of a free core counted.
    fn weight(&self, a: usize, b: usize) -> f64 {
        let free = if self.free[a] > 0 { 0.0 } else { f64::INFINITY };
        self.edges[a][b].cost.min(free)
    }

    /// A circle of moves that saves, as pairs of nodes (Bellman and Ford).
    fn circle(&self) -> Option<Vec<(usize, usize)>> {
        let places = self.free.len();
        let (mut reach, mut from) = (vec![0.0_f64; places], vec![usize::MAX; places]);
        let mut last = None;
        for _ in 0..=places {
            last = None;
            for a in 0..places {
                for b in (0..places).filter(|b| *b != a) {
                    let through = reach[a] + self.weight(a, b);
                    if through + SAVES < reach[b] {
                        (reach[b], from[b], last) = (through, a, Some(b));
                    }
                }
            }
            last?;
        }
        // Back so far that it is surely in the circle.
        let mut node = last?;
        for _ in 0..places {
            node = *from.get(node)?;
        }
        let (start, mut circle) = (node, Vec::new());
        loop {
            let before = *from.get(node)?;
            circle.push((before, node));
            node = before;
            if node == start || circle.len() > places {
                break;
            }
        }
        circle.reverse();
        Some(circle)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::place::Row;

    fn cost(grid: &Grid, counts: &[Vec<usize>]) -> f64 {
        let on =
            |row: usize, node: usize| (1..=counts[row][node]).map(move |k| grid.rows[row].cost(node, k)).sum::<f64>();
        (0..counts.len()).flat_map(|row| (0..grid.free.len()).map(move |node| on(row, node))).sum()
    }

    /// The cheapest of all divisions.
    fn best(grid: &Grid, row: usize, free: &mut Vec<usize>) -> f64 {
        if row == grid.rows.len() {
            return 0.0;
        }
        let mut counts = vec![0; free.len()];
        spread(grid, row, 0, grid.rows[row].count, &mut counts, free)
    }

    fn spread(
        grid: &Grid,
        row: usize,
        node: usize,
        rest: usize,
        counts: &mut Vec<usize>,
        free: &mut Vec<usize>,
    ) -> f64 {
        if node == free.len() {
            if rest > 0 {
                return f64::INFINITY;
            }
            let own: f64 = (0..node)
                .flat_map(|node| (1..=counts[node]).map(move |k| (node, k)))
                .map(|(node, k)| grid.rows[row].cost(node, k))
                .sum();
            return own + best(grid, row + 1, free);
        }
        let mut least = f64::INFINITY;
        for count in 0..=rest.min(free[node]) {
            counts[node] = count;
            free[node] -= count;
            least = least.min(spread(grid, row, node + 1, rest - count, counts, free));
            free[node] += count;
        }
        counts[node] = 0;
        least
    }

    fn row(nodes: usize) -> impl Strategy<Value = Row> {
        let small = || prop::collection::vec(0_usize..3, nodes);
        (0_usize..4, small(), small(), prop::collection::vec(0.0_f64..0.5, nodes), 0.0_f64..0.2)
            .prop_map(move |(count, held, near, far, step)| Row { count, held, near, most: vec![4; nodes], far, step })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// No other division of the same numbers costs less.
        #[test]
        fn placement_is_exact(mut rows in prop::collection::vec(row(3), 1..4)) {
            let free = vec![4; 3];
            // What is held by all together is there.
            for (node, free) in free.iter().enumerate() {
                let mut left = *free;
                for row in &mut rows {
                    row.held[node] = row.held[node].min(left);
                    left -= row.held[node];
                }
            }
            let (nodes, none) = (vec![None; 3], Vec::new());
            let grid = Grid { nodes, free, rows, cores: vec![none.clone(); 3], locked: Vec::new() };
            let counts = solve_within(&grid, 1000);
            for (row, counts) in grid.rows.iter().zip(&counts) {
                prop_assert_eq!(counts.iter().sum::<usize>(), row.count);
            }
            let (ours, best) = (cost(&grid, &counts), best(&grid, 0, &mut grid.free.clone()));
            prop_assert!(ours <= best + 1e-6, "{ours} is more than {best}: {counts:?} of {grid:?}");
        }
    }
}
