//! How often something may happen: a bucket that fills evenly.

use std::time::Instant;

/// So many a second, and so many at once.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// In a second, over a long time.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// What is left of a [`Rate`].
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// In thousandths of one.
    left: u64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: u64::from(rate.burst) * 1000, at: now }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        if passed > 0 {
            let filled = passed.saturating_mul(self.rate.per_second.into());
            self.left = self.left.saturating_add(filled).min(u64::from(self.rate.burst) * 1000);
            self.at = now;
        }
        match self.left.checked_sub(1000) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 3 }, start);
        let mut taken = |millis: u64| (0..100).filter(|_| bucket.take(start + Duration::from_millis(millis))).count();
        assert_eq!(taken(0), 3);
        assert_eq!(taken(99), 0);
        assert_eq!(taken(150), 1);
        assert_eq!(taken(1_000_000), 3);
    }
}
