use std::io::Read;
use std::path::PathBuf;

use sandpool_sys::workload::Workload;

use super::*;

/// Tells all that login files can set, but for what differs from one shell to the next.
const TELL: &str = "\
echo \"$? $- $0 $#\"; set -o; shopt; alias; umask; ulimit -a; trap -p; pwd
declare -f
declare -p | grep -Ev '^declare -[-a-zA-Z]+ (BASH[A-Z_]*|EPOCH.*|S?RANDOM|SECONDS|PPID|LINENO|FUNCNAME|PIPESTATUS|HISTCMD|_)\\b'
env | grep -v ^_= | sort";

fn run(words: Vec<String>, more: Vec<(&str, &str)>, pass: Vec<(OwnedFd, i32)>, home: &Path) -> (String, i32) {
    let null = || OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap());
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let home = home.to_str().unwrap();
    let usual = [("PATH", "/usr/bin:/bin"), ("HOME", home), ("LANG", "C.UTF-8")];
    let pid = sandpool_sys::workload::spawn(Workload {
        argv: words.into_iter().map(Into::into).collect(),
        file: None,
        env: usual.into_iter().chain(more).map(|(name, value)| (name.into(), value.into())).collect(),
        directory: PathBuf::from(home),
        identity: None,
        stdio: [null(), write, null()],
        pass,
        terminal: false,
    })
    .unwrap();
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed());
    let (_, status) = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap().unwrap();
    (text, status.exit_status().unwrap_or(-1))
}

/// A login that takes `profile` for the text of `/etc/profile`: what this machine has may be anything.
fn login(profile: &str) -> Login {
    Login { entry: sealed(FIRST).unwrap(), profile: sealed(profile).unwrap() }
}

#[test]
fn a_shell_is_what_a_login_shell_is_whatever_its_files_say() {
    let profile = std::fs::read_to_string("/etc/profile").unwrap_or_default();
    let home = tempfile::tempdir().unwrap();
    let none: &[(&str, &str)] = &[];
    for files in [
        none,
        &[(".profile", "export A=1; B=2; umask 027; cd /tmp; PATH=$PATH:/more")],
        &[
            (".profile", "echo told"),
            (".bash_profile", "f() { echo f; }; export -f f; declare -r C=3; declare -a D=(1 2)"),
        ],
        &[
            (".profile", "echo never"),
            (".bash_login", "shopt -s expand_aliases extglob; alias g='echo g'; set -o pipefail"),
        ],
        &[(".bash_profile", "export E=1; true; return; E=2")],
        &[(".bash_profile", "exit 7")],
        &[(".profile", "set -u; ulimit -n 64; trap 'echo over' EXIT; export BASH_ENV=/nothing")],
        &[(".profile", "if"), (".bash_logout", "echo out")],
        &[(".profile", "HOME=/nowhere; false")],
        &[(".bash_logout", "echo out")],
    ] {
        for (name, text) in files {
            std::fs::write(home.path().join(name), text).unwrap();
        }
        for command in [TELL, "exit 4", "logout", "no-such-program", "if then", "exec env | grep -c BASH"] {
            let (words, variable, pass) = login(&profile).start(command.to_owned()).unwrap();
            let ours = run(words, vec![variable], pass.into(), home.path());
            let words = ["/bin/bash", "-lc", command].map(str::to_owned).into();
            assert_eq!(ours, run(words, Vec::new(), Vec::new(), home.path()), "{files:?}: {command}");
        }
        for (name, _) in files {
            std::fs::remove_file(home.path().join(name)).unwrap();
        }
    }
}

#[test]
fn a_profile_may_return() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".profile"), "echo mine").unwrap();
    let (words, variable, pass) = login("echo theirs; return; echo never").start("echo after".to_owned()).unwrap();
    assert_eq!(run(words, vec![variable], pass.into(), home.path()), ("theirs\nmine\nafter\n".to_owned(), 0));
}

#[test]
fn what_debian_asks_of_programs_is_in_the_text() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("etc/profile.d");
    let read = || {
        let login = Login::read(root.path())?;
        let mut text = String::new();
        std::fs::File::from(login.profile).read_to_string(&mut text).unwrap();
        Some(text)
    };
    assert!(read().is_none(), "there is no profile");
    std::fs::create_dir_all(root.path().join("etc")).unwrap();
    let profile = root.path().join("etc/profile");
    std::fs::write(&profile, format!("[ \"$(id -u)\" -eq 0 ] || for i in {FILES}; do . $i; done\n")).unwrap();
    assert_eq!(read().unwrap(), "[ \"$EUID\" -eq 0 ] || for i in ; do . $i; done\n");
    std::fs::create_dir(&directory).unwrap();
    for name in ["b.sh", "a-1.x.sh", "_.sh", ".hidden.sh", "a b.sh", "no", "-.sh", "é.sh", "z.sh~"] {
        std::fs::write(directory.join(name), "").unwrap();
    }
    let files = "/etc/profile.d/_.sh /etc/profile.d/a-1.x.sh /etc/profile.d/b.sh";
    assert_eq!(read().unwrap(), format!("[ \"$EUID\" -eq 0 ] || for i in {files}; do . $i; done\n"));
    std::fs::create_dir(directory.join("c.sh")).unwrap();
    assert!(read().is_none(), "what is no file is for the program to judge");
    std::fs::write(&profile, "export A=1\n").unwrap();
    assert!(read().is_none(), "a profile of another kind is bash's own to read");
}

#[test]
fn nobody_changes_what_shells_are_given() {
    let login = login("");
    for file in [&login.entry, &login.profile] {
        assert!(rustix::io::write(file, b"x").is_err());
    }
}
