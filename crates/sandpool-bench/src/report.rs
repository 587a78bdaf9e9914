//! What was measured, as data, as a table for people, and as Markdown.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::stats::Summary;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    /// Milliseconds: less is better.
    Milliseconds,
    /// Each second: more is better.
    PerSecond,
    /// Mebibytes: less is better.
    Mebibytes,
    /// Things: more is better.
    Count,
}

impl Unit {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::PerSecond => "/s",
            Self::Mebibytes => "MiB",
            Self::Count => "",
        }
    }

    /// Whether more of it is better.
    #[must_use]
    pub fn is_better_when_more(self) -> bool {
        matches!(self, Self::PerSecond | Self::Count)
    }
}

/// A goal, as a ratio to the floor of the same run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Its number in the goal table.
    pub number: u32,
    /// The ratio of the medians; of the means for rates. At most, or at least where more is better.
    pub p50: Option<f64>,
    /// The ratio of the 99th percentiles, at most.
    pub p99: Option<f64>,
}

/// One measure: what we take, beside the floor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The scenario it comes from.
    pub scenario: String,
    /// What was measured, for people.
    pub measure: String,
    /// What the figures count.
    pub unit: Unit,
    /// Ours.
    pub ours: Summary,
    /// What the floor is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_is: Option<String>,
    /// The floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Summary>,
    /// What it shall be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// What a reader must know besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Something failed or was refused: the goal is missed whatever the figures say.
    #[serde(default)]
    pub spoilt: bool,
}

/// Whether a goal was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is none.
    NoGoal,
    /// It was.
    Met,
    /// It was not.
    Missed,
}

impl Row {
    /// Our median over the floor's; of rates the means.
    #[must_use]
    pub fn ratio_p50(&self) -> Option<f64> {
        let figure = |summary: &Summary| if self.unit == Unit::PerSecond { summary.mean } else { summary.p50 };
        over(figure(&self.ours), figure(self.floor.as_ref()?))
    }

    /// Our 99th percentile over the floor's; none of rates.
    #[must_use]
    pub fn ratio_p99(&self) -> Option<f64> {
        let floor = self.floor.as_ref().filter(|_| self.unit == Unit::Milliseconds)?;
        over(self.ours.p99, floor.p99)
    }

    /// How it stands to its goal.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let Some(goal) = self.goal else { return Verdict::NoGoal };
        let reached = |ratio: Option<f64>, goal: Option<f64>| match (ratio, goal) {
            (_, None) => true,
            (Some(ratio), Some(goal)) if self.unit.is_better_when_more() => ratio >= goal,
            (Some(ratio), Some(goal)) => ratio <= goal,
            (None, Some(_)) => false,
        };
        if !self.spoilt && reached(self.ratio_p50(), goal.p50) && reached(self.ratio_p99(), goal.p99) {
            Verdict::Met
        } else {
            Verdict::Missed
        }
    }
}

fn over(ours: f64, floor: f64) -> Option<f64> {
    (floor > 0.0).then(|| ours / floor)
}

/// The rows as a Markdown table with notes below it. It is read as it is, too.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let heading =
        ["", "Measure", "n", "p50", "p90", "p99", "p99.9", "Floor p50", "p99", "Ratio p50", "p99", "Goal", ""];
    let mut cells: Vec<Vec<String>> = vec![heading.map(str::to_owned).to_vec()];
    let mut notes = Vec::new();
    for row in rows {
        let rate = row.unit == Unit::PerSecond;
        let mut measure = format!("{}, {}", row.measure, row.unit.word());
        if row.unit == Unit::Count {
            measure = row.measure.clone();
        }
        for note in row.floor_is.iter().map(|floor| format!("Floor: {floor}.")).chain(row.notes.iter().cloned()) {
            let number = notes.iter().position(|known| *known == note).unwrap_or_else(|| {
                notes.push(note);
                notes.len() - 1
            });
            let _ = write!(measure, " [{}]", number + 1);
        }
        let ours = &row.ours;
        let dash = || "-".to_owned();
        let mut line = vec![row.goal.map(|goal| format!("G{}", goal.number)).unwrap_or_default(), measure];
        line.push(ours.count.to_string());
        if ours.count == 1 || row.unit == Unit::Count {
            line.extend([figure(ours.p50), dash(), dash(), dash()]);
        } else if rate {
            // Of slices of a rate, the mean is what was done in the time.
            line.extend([figure(ours.mean), dash(), dash(), dash()]);
        } else {
            line.extend([ours.p50, ours.p90, ours.p99, ours.p999].map(figure));
        }
        match &row.floor {
            Some(floor) if rate => line.extend([figure(floor.mean), dash()]),
            Some(floor) if floor.count > 1 => line.extend([figure(floor.p50), figure(floor.p99)]),
            Some(floor) => line.extend([figure(floor.p50), dash()]),
            None => line.extend([dash(), dash()]),
        }
        let ratio = |ratio: Option<f64>| ratio.map_or_else(dash, |ratio| format!("{ratio:.2}"));
        line.extend([ratio(row.ratio_p50()), ratio(row.ratio_p99().filter(|_| ours.count > 1))]);
        line.push(row.goal.map_or_else(String::new, |goal| {
            let sign = if row.unit.is_better_when_more() { "≥" } else { "≤" };
            let parts: Vec<String> = [goal.p50, goal.p99]
                .iter()
                .map(|part| part.map_or_else(|| "·".to_owned(), |part| format!("{sign} {part}")))
                .collect();
            parts.join(" / ").trim_end_matches(" / ·").to_owned()
        }));
        line.push(
            match row.verdict() {
                Verdict::NoGoal => "",
                Verdict::Met => "met",
                Verdict::Missed => "missed",
            }
            .to_owned(),
        );
        cells.push(line);
    }
    let mut text = markdown(&cells);
    if !notes.is_empty() {
        text.push('\n');
    }
    for (at, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "- [{}] {note}", at + 1);
    }
    text
}

/// Rows of cells as a table: the first column of words to the left, numbers to the right.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let is_number = |column: usize| {
        rows.iter()
            .skip(1)
            .all(|row| row[column].chars().all(|letter| letter.is_ascii_digit() || "-.".contains(letter)))
            && rows.len() > 1
    };
    let widths: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), is_number(column))).collect();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (cell, (width, right)) in row.iter().zip(&widths) {
            let gap = " ".repeat(width - cell.chars().count());
            let _ = if *right { write!(text, "| {gap}{cell} ") } else { write!(text, "| {cell}{gap} ") };
        }
        text.push_str("|\n");
        if at == 0 {
            for (width, right) in &widths {
                let _ = write!(text, "|{}{}", "-".repeat(width + 1), if *right { ":" } else { "-" });
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Three figures of a number, or all before the point.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(measure: &str, unit: Unit, ours: &[f64], floor: &[f64], goal: Option<Goal>) -> Row {
        Row {
            scenario: "test".into(),
            measure: measure.into(),
            unit,
            ours: Summary::of(ours),
            floor_is: (!floor.is_empty()).then(|| "a bare server".to_owned()),
            floor: (!floor.is_empty()).then(|| Summary::of(floor)),
            goal,
            notes: Vec::new(),
            spoilt: false,
        }
    }

    #[test]
    fn a_report_puts_each_figure_beside_its_floor_and_goal() {
        let goal = |number, p50, p99| Some(Goal { number, p50, p99 });
        let mut refused = row("new session", Unit::Milliseconds, &[0.5, 0.6], &[0.4, 0.5], goal(4, None, Some(2.4)));
        refused.spoilt = true;
        refused.notes.push("2 of 100 were refused".into());
        let rows = [
            row("print(1)", Unit::Milliseconds, &[0.2, 0.21, 0.4], &[0.1, 0.12, 0.3], goal(1, Some(1.7), Some(2.2))),
            row("with 8 sessions", Unit::PerSecond, &[900.0, 1100.0], &[1500.0, 1700.0], goal(2, Some(0.57), None)),
            refused,
            row("memory", Unit::Mebibytes, &[2.0], &[1.5], goal(7, Some(1.5), None)),
            row("start to ready", Unit::Milliseconds, &[1234.5], &[], None),
            row("sessions that fit", Unit::Count, &[3100.0], &[5000.0], goal(9, Some(0.6), None)),
        ];
        expect_test::expect![[r#"
            |    | Measure                 | n |   p50 |   p90 |   p99 | p99.9 | Floor p50 |   p99 | Ratio p50 |  p99 | Goal          |        |
            |----|-------------------------|--:|------:|------:|------:|------:|----------:|------:|----------:|-----:|---------------|--------|
            | G1 | print(1), ms [1]        | 3 | 0.210 | 0.400 | 0.400 | 0.400 |     0.120 | 0.300 |      1.75 | 1.33 | ≤ 1.7 / ≤ 2.2 | missed |
            | G2 | with 8 sessions, /s [1] | 2 |  1000 |     - |     - |     - |      1600 |     - |      0.62 |    - | ≥ 0.57        | met    |
            | G4 | new session, ms [1] [2] | 2 | 0.500 | 0.600 | 0.600 | 0.600 |     0.400 | 0.500 |      1.25 | 1.20 | · / ≤ 2.4     | missed |
            | G7 | memory, MiB [1]         | 1 |  2.00 |     - |     - |     - |      1.50 |     - |      1.33 |    - | ≤ 1.5         | met    |
            |    | start to ready, ms      | 1 |  1234 |     - |     - |     - |         - |     - |         - |    - |               |        |
            | G9 | sessions that fit [1]   | 1 |  3100 |     - |     - |     - |      5000 |     - |      0.62 |    - | ≥ 0.6         | met    |

            - [1] Floor: a bare server.
            - [2] 2 of 100 were refused
        "#]].assert_eq(&table(&rows));
    }

    #[test]
    fn numbers_have_three_figures() {
        let shown = [0.0, 0.0004, 0.12345, 0.9996, 1.2345, 12.345, 123.45, 12_345.6].map(figure);
        assert_eq!(shown, ["0", "0.000", "0.123", "1.00", "1.23", "12.3", "123", "12346"]);
    }
}
