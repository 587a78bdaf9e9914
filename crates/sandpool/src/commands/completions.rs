//! `sandpool completions`: a script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Outcome;
use crate::args::Cli;
use crate::print;

pub(crate) fn run(shell: Shell) -> Outcome {
    print::bytes(&script(shell))?;
    Ok(0)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sandpool", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = String::from_utf8(script(shell)).unwrap();
            assert!(script.contains("doctor") && script.contains("max-sessions"), "{shell}");
            assert!(!script.contains("detached"), "{shell}: hidden flags stay hidden");
        }
    }

    #[test]
    fn bash_takes_the_script() {
        let mut child = std::process::Command::new("bash")
            .arg("-n")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("bash is needed for this test");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &script(Shell::Bash)).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
