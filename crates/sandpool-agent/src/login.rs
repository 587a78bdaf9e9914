//! The shell that a login gives, without the programs that Debian's `/etc/profile` starts for it.
//!
//! ```text
//! bash -lc COMMAND                /etc/profile --forks--> id -u, run-parts; its files; ~/.bash_profile or ...; COMMAND
//! bash --noprofile -lc COMMAND    the same text, with what those two would print in their place; ...; COMMAND
//! ```
//!
//! Commands run in a login shell. To read `/etc/profile` is cheap, but Debian's starts two programs, and those take twice
//! as long as all the rest of a short command. What they print does not change while a sandbox lives: it depends on who
//! the shell runs as, which bash knows, and on the names in a directory of the image. So it is put into the text once, and
//! the text is given to each shell by `BASH_ENV`, which bash reads in the place of login files that it was told to leave
//! out. Nothing that the files do is remembered: each shell runs them all, also those that a session has written to its
//! home, and is a login shell in every other way. The one difference known: `$?` is N before the first command when a file
//! of the home has ended by `return N`, which a login shell forgets.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::SealFlags;

use crate::environment::Environment;
use crate::program::script;

/// Where the shell finds [`FIRST`].
const ENTRY: i32 = 9;

/// Where it finds the text of `/etc/profile`. It is a file of its own because it may `return`.
const PROFILE: i32 = 8;

/// What stands in for the reading of login files: the order is bash's own.
const FIRST: &str = "\
unset -v BASH_ENV
. /dev/fd/8
exec 8<&- 9<&-
if [ -e ~/.bash_profile ]; then . ~/.bash_profile
elif [ -e ~/.bash_login ]; then . ~/.bash_login
elif [ -e ~/.profile ]; then . ~/.profile
fi
";

/// Variables with which bash reads other files than a login shell does by itself. With one of them it is left alone.
const OTHERWISE: [&str; 4] = ["BASH_ENV", "BASHOPTS", "POSIXLY_CORRECT", "SHELLOPTS"];

/// Debian's question for the user, and how bash itself knows it.
const USER: (&str, &str) = ("$(id -u)", "$EUID");

/// Debian's question for the files of `/etc/profile.d`.
const FILES: &str = r"$(run-parts --list --regex '^[a-zA-Z0-9_][a-zA-Z0-9._-]*\.sh$' /etc/profile.d)";

/// Bytes of a profile that is looked at.
const LIMIT: u64 = 64 * 1024;

/// What shells of a sandbox are given in place of their login files.
#[derive(Debug)]
pub struct Login {
    entry: OwnedFd,
    profile: OwnedFd,
}

impl Login {
    /// Reads `etc/profile` and the names in `etc/profile.d`, below `root`. `None` when shells read their login files
    /// better themselves: nothing is known of what the profile starts, or it cannot be read.
    #[must_use]
    pub fn read(root: &Path) -> Option<Self> {
        let file = std::fs::File::open(root.join("etc/profile")).ok()?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(file, LIMIT + 1), &mut text).ok()?;
        if u64::try_from(text.len()).ok()? > LIMIT || !(text.contains(USER.0) || text.contains(FILES)) {
            return None;
        }
        let text = text.replace(USER.0, USER.1).replace(FILES, &files(&root.join("etc/profile.d"))?);
        Some(Self { entry: sealed(FIRST).ok()?, profile: sealed(&text).ok()? })
    }

    /// The words that start a shell for `command`, what to add to its environment, and the descriptors it needs.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub fn start(&self, command: String) -> std::io::Result<(Vec<String>, (&'static str, &'static str), Descriptors)> {
        let words = vec!["/bin/bash".to_owned(), "--noprofile".to_owned(), "-lc".to_owned(), command];
        let pass = [(self.entry.try_clone()?, ENTRY), (self.profile.try_clone()?, PROFILE)];
        Ok((words, ("BASH_ENV", "/dev/fd/9"), pass))
    }
}

/// Descriptors of a program, and their numbers there.
pub type Descriptors = [(OwnedFd, i32); 2];

/// Whether bash reads the login files of such an environment and no others.
#[must_use]
pub fn is_usual(environment: &Environment) -> bool {
    !OTHERWISE.iter().any(|name| environment.has(name))
}

/// What [`FILES`] would be: the names that fit, in their order. `None` when that is not certain.
fn files(directory: &Path) -> Option<String> {
    let mut names = Vec::new();
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                let name = entry.ok()?.file_name();
                if let Some(name) = name.to_str().filter(|name| is_listed(name)) {
                    if !std::fs::metadata(directory.join(name)).ok()?.is_file() {
                        return None;
                    }
                    names.push(format!("/etc/profile.d/{name}"));
                }
            }
        }
        // The profile looks whether it is there before it asks.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => return None,
    }
    names.sort_unstable();
    Some(names.join(" "))
}

fn is_listed(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.ends_with(".sh")
        && name.bytes().enumerate().all(|(at, byte)| is_word(byte) || (at > 0 && matches!(byte, b'.' | b'-')))
}

/// A file in memory that nobody can change: all shells of a sandbox read the same one.
fn sealed(text: &str) -> std::io::Result<OwnedFd> {
    let file = script(text.as_bytes())?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
