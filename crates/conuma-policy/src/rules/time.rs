//! Times of the week.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A minute of the week, from Monday 00:00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct WallTime(u32);

impl WallTime {
    /// Of seconds since 1970-01-01 00:00 UTC, which was a Thursday.
    pub fn of_unix(seconds: u64) -> Self {
        let minutes = seconds / 60 + u64::from(3 * DAY);
        Self((minutes % u64::from(WEEK)) as u32)
    }

    /// The same instant on clocks that are ahead of UTC by so much.
    #[must_use]
    pub fn local(self, offset: UtcOffset) -> Self {
        Self((i64::from(self.0) + i64::from(offset.0)).rem_euclid(i64::from(WEEK)) as u32)
    }

    fn day(self) -> usize {
        (self.0 / DAY) as usize
    }

    fn minute(self) -> u32 {
        self.0 % DAY
    }
}

/// Minutes ahead of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct UtcOffset(i32);

/// A time of day: `08:30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct TimeOfDay(u32);

/// Days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Days(u8);

/// From a time to a time on some days. One that ends at or before its beginning goes on into the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The days on which it begins.
    pub days: Days,
    /// When it begins.
    pub from: TimeOfDay,
    /// When it is over.
    pub to: TimeOfDay,
}

impl Window {
    /// Whether a time lies in it.
    pub fn contains(&self, local: WallTime) -> bool {
        let (day, minute) = (local.day(), local.minute());
        let begun_today = self.days.contains(day) && minute >= self.from.0;
        if self.from.0 < self.to.0 {
            return begun_today && minute < self.to.0;
        }
        begun_today || (self.days.contains((day + 6) % 7) && minute < self.to.0)
    }

    /// Minutes of the week at which something may change.
    pub fn edges(&self) -> impl Iterator<Item = WallTime> + '_ {
        let days = (0..7).filter(|day| self.days.contains(*day as usize));
        let to = if self.to.0 <= self.from.0 { self.to.0 + DAY } else { self.to.0 };
        days.flat_map(move |day| [self.from.0, to].map(|minute| WallTime((day * DAY + minute) % WEEK)))
    }
}

impl Days {
    /// Every day.
    pub const ALL: Self = Self(0x7f);

    /// Of names: `mon` to `sun`.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut days = 0;
        for name in names {
            let day = NAMES.iter().position(|known| *known == name.to_lowercase());
            let day = day.ok_or_else(|| format!("`{name}` is no day (expected one of {})", NAMES.join(", ")))?;
            days |= 1 << day;
        }
        Ok(Self(days))
    }

    fn contains(self, day: usize) -> bool {
        self.0 & (1 << day) != 0
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("daily");
        }
        let names: Vec<&str> = (0..7).filter(|day| self.contains(*day)).map(|day| NAMES[day]).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for TimeOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(hour, minute)| Some((number(hour)?, number(minute)?)));
        match parts {
            Some((hour, minute)) if hour < 24 && minute < 60 => Ok(Self(hour * 60 + minute)),
            Some((24, 0)) => Ok(Self(DAY)),
            _ => Err(format!("`{text}` is no time of day (expected the form `08:30`)")),
        }
    }
}

fn number(text: &str) -> Option<u32> {
    (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}-{}", self.days, self.from, self.to)
    }
}

impl FromStr for UtcOffset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is no difference to UTC (expected the form `+01:00`)");
        let (sign, rest) = match text.split_at_checked(1) {
            Some(("+", rest)) => (1, rest),
            Some(("-", rest)) => (-1, rest),
            _ => return Err(error()),
        };
        let time: TimeOfDay = rest.parse().map_err(|_| error())?;
        if time.0 > 14 * 60 {
            return Err(error());
        }
        Ok(Self(sign * time.0 as i32))
    }
}

impl fmt::Display for UtcOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        write!(f, "{sign}{}", TimeOfDay(self.0.unsigned_abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 07:00 UTC, a Sunday.
    const SUNDAY: u64 = 1_795_330_800;

    fn window(days: &[&str], from: &str, to: &str) -> Window {
        Window { days: Days::of(days.iter().copied()).unwrap(), from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    #[test]
    fn a_window_counts_on_its_days_and_beyond_midnight() {
        let now = WallTime::of_unix(SUNDAY);
        assert!(window(&["sun"], "06:59", "07:01").contains(now));
        assert!(!window(&["sun"], "06:00", "07:00").contains(now));
        assert!(!window(&["mon"], "06:00", "08:00").contains(now));
        assert!(window(&["sat"], "22:00", "08:00").contains(now), "begun the day before");
        assert!(!window(&["sun"], "22:00", "08:00").contains(now));
        assert!(window(&["sun"], "00:00", "00:00").contains(now), "a whole day");
    }

    #[test]
    fn offsets_shift_the_week() {
        let late = WallTime::of_unix(SUNDAY).local("+14:00".parse().unwrap()).local("+03:00".parse().unwrap());
        assert!(window(&["mon"], "00:00", "00:01").contains(late));
        let early = WallTime::of_unix(SUNDAY).local("-07:01".parse().unwrap());
        assert!(window(&["sat"], "23:59", "24:00").contains(early));
    }

    #[test]
    fn texts_that_are_no_times_are_refused() {
        for text in ["24:01", "8:30", "08:60", "+8:30", "", "ab:cd", "08-30"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
        for text in ["01:00", "+15:00", "+0100", "", "é1:00"] {
            assert!(text.parse::<UtcOffset>().is_err(), "{text}");
        }
    }
}
