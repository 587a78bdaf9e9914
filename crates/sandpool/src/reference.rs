//! The reference part of `docs/cli.md`, made from the arguments' own help so that the two cannot differ.

use std::fmt::Write;

use clap::{Command, CommandFactory};

use crate::args::Cli;

const BEGIN: &str =
    "<!-- commands: made from the program's own help; `UPDATE_EXPECT=1 cargo test -p sandpool` writes it -->\n";
const END: &str = "<!-- end of commands -->\n";

/// Every command that is shown, with its help.
fn commands() -> String {
    let mut text = String::new();
    let mut root = Cli::command().term_width(100);
    root.build();
    write_command(&root, "sandpool", &mut text);
    text
}

fn write_command(command: &Command, path: &str, text: &mut String) {
    let inner: Vec<_> =
        command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help").collect();
    let help = command.clone().bin_name(path).render_help().to_string();
    let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    // Flags that every command takes are described once, with the program itself.
    let help = if path == "sandpool" { help } else { without_global(&help) };
    let _ = write!(text, "### {path}\n\n```text\n{}\n```\n\n", help.trim_end());
    for inner in inner {
        write_command(inner, &format!("{path} {}", inner.get_name()), text);
    }
}

/// `help` without the lines about flags that every command takes.
fn without_global(help: &str) -> String {
    let global: Vec<String> = Cli::command()
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
        .chain(["--help".into()])
        .collect();
    let mut kept = String::new();
    let mut skipping = false;
    for line in help.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if trimmed.starts_with('-') && indent <= 6 {
            skipping = global.iter().any(|flag| trimmed.split([' ', ',', '[', '=']).any(|word| word == flag));
        } else if indent <= 2 {
            skipping = false;
        }
        if !skipping {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept.replace("\nOptions:\n\n", "\n").trim_end().trim_end_matches("\nOptions:").to_owned()
}

#[test]
fn the_guide_shows_the_programs_own_help() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let (before, rest) = guide.split_once(BEGIN).expect("the mark before the commands");
    let (_, after) = rest.split_once(END).expect("the mark after the commands");
    let expected = format!("{before}{BEGIN}\n{}{END}{after}", commands());
    if guide != expected && std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &expected).unwrap();
    } else {
        assert!(guide == expected, "docs/cli.md is out of date; UPDATE_EXPECT=1 cargo test -p sandpool writes it anew");
    }
}
