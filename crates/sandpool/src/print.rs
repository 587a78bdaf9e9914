//! How answers look: JSON for programs, aligned columns for people.

use std::io::Write;

use serde_json::Value;

use crate::failure::{Failure, printable};

/// Writes to standard output. A reader that has gone away is no failure: the command has nobody to tell.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Writes bytes to standard output.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot write to standard output").because(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints one JSON document.
pub(crate) fn json(value: &Value) -> Result<(), Failure> {
    out(&format!("{value:#}\n"))
}

/// Prints rows under a heading, each column as wide as its widest cell.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    out(&render_table(heading, rows))
}

fn render_table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    let shown: Vec<Vec<String>> = std::iter::once(&heading)
        .chain(rows)
        .map(|row| row.iter().map(|cell| printable(cell).replace(['\n', '\t'], " ")).collect())
        .collect();
    let width = |column: usize| {
        shown.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in &shown {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            let gap = (width(column) + 2).saturating_sub(cell.chars().count());
            line.extend(std::iter::repeat_n(' ', gap));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints an object as lines of `name: value`; inner objects are indented.
pub(crate) fn object(value: &Value) -> Result<(), Failure> {
    let mut text = String::new();
    render_object(value, 0, &mut text);
    out(&text)
}

fn render_object(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = printable(name);
                match field {
                    Value::Object(inner) if !inner.is_empty() => {
                        text.push_str(&format!("{indent}{name}:\n"));
                        render_object(field, depth + 1, text);
                    }
                    Value::Array(items) if !items.is_empty() => {
                        text.push_str(&format!("{indent}{name}:\n"));
                        for item in items {
                            text.push_str(&format!("{indent}  - {}\n", cell(item)));
                        }
                    }
                    _ => text.push_str(&format!("{indent}{name}: {}\n", cell(field))),
                }
            }
        }
        _ => text.push_str(&format!("{indent}{}\n", cell(value))),
    }
}

/// A value in one line.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "-".into(),
        other => printable(&other.to_string()),
    }
}

/// A number of bytes for people.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let step = (bytes.ilog2() / 10).min(4);
    let tenths = (u128::from(bytes) * 10) >> (10 * step);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[step as usize - 1])
}

/// What went on, for people, on standard error.
pub(crate) fn note(text: &str) {
    // Standard error may be closed; there is nobody else to tell.
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cannot_be_broken_by_names() {
        let rows =
            [vec!["python".into(), "a\nb".into(), "1".into()], vec!["n".into(), "\u{1b}[2J".into(), String::new()]];
        expect_test::expect![[r#"
            POOL    SESSION    BUSY
            python  a b        1
            n       \u{1b}[2J
        "#]]
        .assert_eq(&render_table(&["POOL", "SESSION", "BUSY"], &rows));
    }

    #[test]
    fn objects_print_as_lines() {
        let mut text = String::new();
        render_object(&serde_json::json!({"a": 1, "b": {"c": null}, "d": ["x", "y"], "e": []}), 0, &mut text);
        expect_test::expect![[r"
            a: 1
            b:
              c: -
            d:
              - x
              - y
            e: -
        "]]
        .assert_eq(&text);
    }

    #[test]
    fn bytes_are_rounded_down_to_a_tenth() {
        let shown = [0, 1023, 1024, 1536, 1 << 20, (1 << 30) - 1, u64::MAX].map(human_bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1023.9 MiB", "16777215.9 TiB"]);
    }
}
