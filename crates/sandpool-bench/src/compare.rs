//! Two programs, interleaved: which is faster, and how sure that is.
//!
//! Both servers run at the same time, and one waits while the other is measured. In each round each has its turn, and who
//! begins changes, so that what disturbs the machine for a while disturbs both.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::report::{Unit, figure, markdown};
use crate::run::{Progress, interruptible, version};
use crate::scenario::{Rounds, Scale, Scenario, Subject};
use crate::server::Server;
use crate::stats::{Ratio, Summary, ratio};

/// Turns of each program, at least, unless another number was asked for. Of fewer, no interval says much.
const LEAST_ROUNDS: usize = 10;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Config {
    /// The two programs.
    pub programs: [PathBuf; 2],
    /// The image store.
    pub images: PathBuf,
    /// The scenarios.
    pub scenarios: Vec<Scenario>,
    /// How often each has its turn; the scenario's own number if not given, and at least 10.
    pub rounds: Option<usize>,
    /// How much in each turn.
    pub scale: Scale,
    /// What the intervals are drawn with.
    pub seed: u64,
}

/// What a comparison brought.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// The two programs' own words about their versions.
    pub versions: [String; 2],
    /// One for each scenario.
    pub rows: Vec<Compared>,
}

/// One scenario, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// The scenario.
    pub scenario: String,
    /// What the figures count.
    pub unit: Unit,
    /// The first program's figures.
    pub a: Summary,
    /// The second's.
    pub b: Summary,
    /// B over A: the medians.
    pub p50: Option<Ratio>,
    /// B over A: the 99th percentiles; none of rates.
    pub p99: Option<Ratio>,
    /// What was refused or failed, of A and B.
    pub refused: [usize; 2],
}

/// Compares.
///
/// # Errors
/// As [`crate::run::run`].
pub fn compare(config: &Config, progress: &dyn Progress) -> Result<Comparison> {
    interruptible(async {
        if let Some(whole) = config.scenarios.iter().find(|scenario| !scenario.has_turns()) {
            bail!("{} is not made of turns, so two programs cannot be compared by it", whole.name());
        }
        let [a, b] = &config.programs;
        let versions = [version(a)?, version(b)?];
        let mut rows = Vec::new();
        for scenario in &config.scenarios {
            let row = one(config, *scenario, progress).await;
            rows.push(row.with_context(|| format!("scenario {}", scenario.name()))?);
        }
        Ok(Comparison { versions, rows })
    })
}

async fn one(config: &Config, scenario: Scenario, progress: &dyn Progress) -> Result<Compared> {
    let rounds = rounds(scenario, config);
    progress.stage(&format!("{}: {}", scenario.name(), scenario.about()), 2 * rounds.rounds);
    let start = async |program: &Path| -> Result<Subject> {
        Ok(Subject::new(Server::start(program, &config.images, scenario.setting(config.scale)).await?))
    };
    let subjects = [start(&config.programs[0]).await?, start(&config.programs[1]).await?];
    let mut samples = [Vec::new(), Vec::new()];
    let mut refused = [0, 0];
    for round in 0..rounds.rounds {
        for turn in 0..2 {
            let side = (round + turn) % 2;
            let block = subjects[side].turn(scenario, config.scale, rounds, round).await?;
            refused[side] += block.refused.len();
            samples[side].push(block.samples);
            progress.step();
        }
    }
    let [a, b] = &samples;
    let unit = scenario.unit();
    Ok(Compared {
        scenario: scenario.name().to_owned(),
        unit,
        a: Summary::of(&a.concat()),
        b: Summary::of(&b.concat()),
        p50: ratio(a, b, 0.5, config.seed),
        p99: ratio(a, b, 0.99, config.seed).filter(|_| unit == Unit::Milliseconds),
        refused,
    })
}

/// The same amount as in a run, in more and shorter turns: an interval needs rounds.
fn rounds(scenario: Scenario, config: &Config) -> Rounds {
    let Rounds { rounds, each } = scenario.rounds(config.scale);
    let more = config.rounds.unwrap_or(rounds.max(LEAST_ROUNDS)).max(2);
    Rounds { rounds: more, each: (each * rounds / more).max(1) }
}

impl Comparison {
    /// The comparison as a table and sentences.
    #[must_use]
    pub fn markdown(&self) -> String {
        let heading = ["Scenario", "A p50", "B p50", "B/A p50", "95 %", "A p99", "B p99", "B/A p99", "95 %", ""];
        let mut cells = vec![heading.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let dash = || "-".to_owned();
            let shown = |ratio: Option<Ratio>| {
                ratio.map_or_else(
                    || [dash(), dash()],
                    |Ratio { ratio, low, high }| [format!("{ratio:.3}"), format!("{low:.3} to {high:.3}")],
                )
            };
            let mut line = vec![row.scenario.clone(), figure(row.a.p50), figure(row.b.p50)];
            line.extend(shown(row.p50));
            if row.unit == Unit::Milliseconds {
                line.extend([figure(row.a.p99), figure(row.b.p99)]);
            } else {
                line.extend([dash(), dash()]);
            }
            line.extend(shown(row.p99));
            line.push(row.sentence());
            cells.push(line);
        }
        format!("A: {}\nB: {}\n\n{}", self.versions[0], self.versions[1], markdown(&cells))
    }
}

impl Compared {
    fn sentence(&self) -> String {
        let mut text = match self.p50 {
            None => "too few rounds to tell".to_owned(),
            Some(ratio) if ratio.is_none() => "no difference".to_owned(),
            Some(Ratio { ratio, .. }) => {
                let is_better = (ratio > 1.0) == self.unit.is_better_when_more();
                let percent = (ratio - 1.0).abs() * 100.0;
                format!("B is {} by {percent:.1} %", if is_better { "better" } else { "worse" })
            }
        };
        if self.refused != [0, 0] {
            text.push_str(&format!("; refused: A {}, B {}", self.refused[0], self.refused[1]));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_says_when_there_is_no_difference() {
        let compared = |scenario: &str, unit, ratio, low, high, refused| Compared {
            scenario: scenario.to_owned(),
            unit,
            a: Summary::of(&[0.2, 0.3, 0.4]),
            b: Summary::of(&[0.1, 0.2, 0.9]),
            p50: Some(Ratio { ratio, low, high }),
            p99: (unit == Unit::Milliseconds).then_some(Ratio { ratio: 2.25, low: 0.9, high: 3.0 }),
            refused,
        };
        let comparison = Comparison {
            versions: ["sandpool 0.1.0".to_owned(), "sandpool 0.2.0".to_owned()],
            rows: vec![
                compared("warm", Unit::Milliseconds, 0.8, 0.75, 0.86, [0, 0]),
                compared("cold", Unit::Milliseconds, 1.01, 0.97, 1.05, [0, 0]),
                compared("churn", Unit::PerSecond, 0.9, 0.89, 0.91, [0, 3]),
            ],
        };
        expect_test::expect![[r#"
            A: sandpool 0.1.0
            B: sandpool 0.2.0

            | Scenario | A p50 | B p50 | B/A p50 | 95 %           | A p99 | B p99 | B/A p99 | 95 %           |                                         |
            |----------|------:|------:|--------:|----------------|------:|------:|--------:|----------------|-----------------------------------------|
            | warm     | 0.300 | 0.200 |   0.800 | 0.750 to 0.860 | 0.400 | 0.900 |   2.250 | 0.900 to 3.000 | B is better by 20.0 %                   |
            | cold     | 0.300 | 0.200 |   1.010 | 0.970 to 1.050 | 0.400 | 0.900 |   2.250 | 0.900 to 3.000 | no difference                           |
            | churn    | 0.300 | 0.200 |   0.900 | 0.890 to 0.910 |     - |     - |       - | -              | B is worse by 10.0 %; refused: A 0, B 3 |
        "#]].assert_eq(&comparison.markdown());
    }
}
