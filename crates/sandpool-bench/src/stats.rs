//! Figures out of samples. Every sample is kept, so that quantiles are exact and no histogram rounds them.

use serde::{Deserialize, Serialize};

/// What is shown of a set of samples, in the samples' own unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many samples.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// The arithmetic mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// At least 90 % are not larger.
    pub p90: f64,
    /// At least 99 % are not larger.
    pub p99: f64,
    /// At least 99.9 % are not larger. With fewer than 1,000 samples this is the largest.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of `samples` in any order; all zeros of none.
    #[must_use]
    pub fn of(samples: &[f64]) -> Self {
        let sorted = sorted(samples);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return Self::default() };
        Self {
            count: sorted.len(),
            min: *min,
            mean: sorted.iter().sum::<f64>() / float(sorted.len()),
            p50: quantile(&sorted, 0.5),
            p90: quantile(&sorted, 0.9),
            p99: quantile(&sorted, 0.99),
            p999: quantile(&sorted, 0.999),
            max: *max,
        }
    }
}

/// `samples` in ascending order.
#[must_use]
pub fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The smallest sample such that at least the part `q` (0 to 1) of all is not larger ("nearest rank"); 0 of none.
#[must_use]
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number of samples")]
    // A hair less, so that 0.9 of 10 is the 9th and not, by rounding, the 10th.
    let rank = (q.clamp(0.0, 1.0) * float(sorted.len()) - 1e-9).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// A ratio of two figures, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Figure of B over figure of A, all rounds together.
    pub ratio: f64,
    /// 95 % of the resampled ratios are not below this, and ...
    pub low: f64,
    /// ... not above this.
    pub high: f64,
}

impl Ratio {
    /// Whether the interval holds 1: the two cannot be told apart.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.low <= 1.0 && self.high >= 1.0
    }
}

/// How often rounds are drawn again for an interval.
const RESAMPLES: usize = 2_000;

/// The ratio of the quantiles `q` of B and A, with a 95 % interval by a bootstrap over rounds.
///
/// Whole rounds are drawn, each with what A and B did in it, because samples of one round resemble each other: drawing
/// single samples would promise more than was measured. `None` with fewer than two rounds, or a figure of 0.
#[must_use]
pub fn ratio(a: &[Vec<f64>], b: &[Vec<f64>], q: f64, seed: u64) -> Option<Ratio> {
    let rounds = a.len().min(b.len());
    if rounds < 2 {
        return None;
    }
    let figure = |side: &[Vec<f64>], drawn: &[usize]| {
        let all: Vec<f64> = drawn.iter().flat_map(|round| side[*round].iter().copied()).collect();
        quantile(&sorted(&all), q)
    };
    let of = |drawn: &[usize]| {
        let (a, b) = (figure(a, drawn), figure(b, drawn));
        (a > 0.0 && b > 0.0).then(|| b / a)
    };
    let ratio = of(&(0..rounds).collect::<Vec<_>>())?;
    let mut random = Random::new(seed);
    let drawn: Vec<f64> =
        (0..RESAMPLES).filter_map(|_| of(&(0..rounds).map(|_| random.below(rounds)).collect::<Vec<_>>())).collect();
    let drawn = sorted(&drawn);
    let tail = tail(rounds);
    Some(Ratio { ratio, low: quantile(&drawn, tail), high: quantile(&drawn, 1.0 - tail) })
}

/// The part of the resampled ratios that is cut off on each side, for 95 % of `rounds` rounds.
///
/// Of few rounds the plain 2.5 % give too narrow an interval. This is the "expanded percentile" interval of Hesterberg, "What
/// Teachers Should Know About the Bootstrap" (2015), section 5.2: as much wider as Student's t is than the normal distribution.
fn tail(rounds: usize) -> f64 {
    const Z: f64 = 1.959_964;
    let (n, freedom) = (float(rounds), float(rounds.saturating_sub(1).max(1)));
    // Student's t at 97.5 %, by the first terms of its expansion (Abramowitz and Stegun, 26.7.5): within 1 % from 4 rounds on.
    let (z3, z5) = (Z.powi(3), Z.powi(5));
    let t = Z + (z3 + Z) / (4.0 * freedom) + (5.0 * z5 + 16.0 * z3 + 3.0 * Z) / (96.0 * freedom * freedom);
    normal_tail((n / freedom).sqrt() * t)
}

/// How much of the normal distribution lies above `x`, which is not negative (Abramowitz and Stegun, 26.2.17: within 1e-7).
fn normal_tail(x: f64) -> f64 {
    let k = 1.0 / (1.0 + 0.231_641_9 * x);
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum = series.iter().rev().fold(0.0, |sum, term| (sum + term) * k);
    (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

/// Random numbers from a seed: SplitMix64. For times and draws, not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u128::try_from(bound).unwrap_or(u128::MAX);
        usize::try_from((u128::from(self.next()) * bound) >> 64).unwrap_or_default()
    }

    /// In (0, 1].
    pub fn unit(&mut self) -> f64 {
        let bits = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        (f64::from(bits) + 1.0) / (f64::from(u32::MAX) + 1.0)
    }
}

/// A count as a number to reckon with.
#[must_use]
pub fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        let found: Vec<f64> = [0.0, 0.1, 0.11, 0.5, 0.9, 0.91, 0.99, 1.0].iter().map(|q| quantile(&ten, *q)).collect();
        assert_eq!(found, [1.0, 1.0, 2.0, 5.0, 9.0, 10.0, 10.0, 10.0]);
        let thousand: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(quantile(&thousand, 0.999), 999.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[7.0], 0.999), 7.0);
    }

    #[test]
    fn a_summary_of_known_values() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let expected =
            Summary { count: 100, min: 1.0, mean: 50.5, p50: 50.0, p90: 90.0, p99: 99.0, p999: 100.0, max: 100.0 };
        assert_eq!(Summary::of(&samples), expected);
        assert_eq!(Summary::of(&[]), Summary::default());
    }

    #[test]
    fn a_constant_factor_is_found_exactly() {
        let a: Vec<Vec<f64>> = (1..=8).map(|round| vec![f64::from(round), f64::from(round) + 0.5]).collect();
        let b: Vec<Vec<f64>> = a.iter().map(|round| round.iter().map(|sample| sample * 2.0).collect()).collect();
        let found = ratio(&a, &b, 0.5, 1).unwrap();
        assert_eq!(found, Ratio { ratio: 2.0, low: 2.0, high: 2.0 });
        assert!(!found.is_none());
    }

    #[test]
    fn noise_of_rounds_is_no_difference() {
        // A and B are drawn alike; single rounds differ by up to 40 %.
        let mut random = Random::new(7);
        let mut side = || -> Vec<Vec<f64>> {
            (0..20)
                .map(|_| {
                    let speed = 1.0 + 0.4 * random.unit();
                    (0..50).map(|_| speed + 0.01 * random.unit()).collect()
                })
                .collect()
        };
        let (a, b) = (side(), side());
        let found = ratio(&a, &b, 0.5, 1).unwrap();
        assert!(found.is_none() && found.low < found.high, "{found:?}");
        assert_eq!(ratio(&a, &b, 0.5, 1), Some(found), "the same seed, the same interval");
    }

    #[test]
    fn few_rounds_give_a_wider_interval() {
        assert!((normal_tail(1.959_964) - 0.025).abs() < 1e-6);
        assert!((normal_tail(0.0) - 0.5).abs() < 1e-6);
        // As tabled by Hesterberg for 5, 10, 20 and 100 observations, in percent.
        let found = [5, 10, 20, 100].map(|rounds| tail(rounds) * 100.0);
        for (found, tabled) in found.iter().zip([0.1, 0.9, 1.6, 2.3]) {
            assert!((found - tabled).abs() < 0.06, "{found} {tabled}");
        }
    }

    #[test]
    fn too_little_gives_no_ratio() {
        assert_eq!(ratio(&[vec![1.0]], &[vec![1.0]], 0.5, 1), None);
        assert_eq!(ratio(&[vec![], vec![]], &[vec![1.0], vec![1.0]], 0.5, 1), None);
    }

    #[test]
    fn random_numbers_stay_in_their_range() {
        let mut random = Random::new(0);
        // The first numbers of SplitMix64 from seed 0, as published with it.
        assert_eq!([random.next(), random.next()], [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4]);
        for _ in 0..1_000 {
            assert!(random.below(3) < 3);
            let unit = random.unit();
            assert!(unit > 0.0 && unit <= 1.0);
        }
    }
}
