//! The shell: what section 7.4 of the wire reference says.

use crate::Act::{Argv, Shell, ShellInterrupted, ShellLong, ShellReads, ShellTimed, Typed};
use crate::Sees::{Ends, Errs, Is, Part, Quiet, Says};
use crate::{Case, Key, Step};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name, steps| Case { name, session: "shell", steps };
    vec![
        case(
            "exit_codes",
            &[
                Step(Shell("true"), &[Ends("Exited(0)"), Says(""), Quiet]),
                Step(Shell("false"), &[Ends("Exited(1)")]),
                Step(Shell("exit 2"), &[Ends("Exited(2)")]),
                Step(Shell("no-such-program"), &[Ends("Exited(127)"), Errs("no-such-program: command not found")]),
                Step(Shell("/etc/passwd"), &[Ends("Exited(126)"), Errs("Permission denied")]),
                Step(Shell("kill -KILL $$"), &[Ends("Exited(137)")]),
                Step(Shell("kill -SEGV $$"), &[Ends("Exited(139)")]),
                Step(Shell("exit 300"), &[Ends("Exited(44)")]),
                Step(Shell("false | true; echo ${PIPESTATUS[0]}"), &[Says("1\n")]),
                Step(Shell("if then"), &[Ends("Exited(2)"), Errs("syntax error")]),
                Step(Shell(""), &[Ends("Exited(0)"), Says("")]),
            ],
        ),
        case(
            "where_and_as_whom",
            &[
                Step(Shell("pwd; echo ~; echo $SHELL"), &[Says("/mnt/data\n/home/sandbox\n/bin/bash\n")]),
                Step(Shell("shopt -q login_shell && echo login; echo $0"), &[Says("login\n/bin/bash\n")]),
                Step(Shell("cd /tmp; export x=1"), &[]),
                Step(Shell("pwd; echo \"[$x]\""), &[Says("/mnt/data\n[]\n")]),
            ],
        ),
        case(
            "login_files",
            &[
                Step(Shell("umask; declare -F gawkpath_append"), &[Says("0022\ngawkpath_append\n"), Quiet]),
                // PATH is what /etc/profile makes of it.
                Step(Shell("echo $PATH"), &[Says("/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games\n")]),
                Step(
                    Shell("env -u _ | sort | cut -d= -f1 | xargs"),
                    &[Is(|run| no_more_than_a_login_shell(&String::from_utf8_lossy(&run.stdout)))],
                ),
                Step(Shell("echo 'export A=1; umask 027; f() { echo f; }; cd /tmp' > ~/.profile"), &[]),
                Step(Shell("echo $A; umask; f; pwd"), &[Says("1\n0027\nf\n/tmp\n"), Quiet]),
                Step(
                    Shell("echo 'export A=2; shopt -s expand_aliases; alias hi=\"echo alias\"' > ~/.bash_profile"),
                    &[],
                ),
                Step(Shell("hi $A; umask"), &[Says("alias 2\n0022\n")]),
                Step(Shell("echo 'exit 5' > ~/.bash_profile"), &[]),
                Step(Shell("echo never"), &[Ends("Exited(5)"), Says("")]),
                Step(Argv(&["rm", "/home/sandbox/.bash_profile", "/home/sandbox/.profile"]), &[]),
                Step(
                    Shell("echo \"[$A]\"; umask; pwd; compgen -G '/proc/self/fd/[4-9]' || echo closed"),
                    &[Says("[]\n0022\n/mnt/data\nclosed\n")],
                ),
                Step(Shell("echo 'echo bye' > ~/.bash_logout; logout"), &[Says("bye\n"), Quiet]),
                Step(Shell("rm ~/.bash_logout; exit"), &[Says("")]),
            ],
        ),
        case("streams_are_apart", &[Step(Shell("echo out; echo err >&2"), &[Says("out\n"), Errs("err\n")])]),
        case(
            "stdin",
            &[
                Step(ShellReads("cat", b"one\ntwo"), &[Says("one\ntwo")]),
                Step(ShellReads("wc -c", b"\0\xff\n"), &[Says("3\n")]),
                Step(ShellReads("read a; read b; echo $b-$a", b"1\n2\n"), &[Says("2-1\n")]),
                Step(ShellReads("true", b"that nobody reads"), &[]),
                Step(Shell("cat; read x || echo end"), &[Says("end\n")]),
            ],
        ),
        case(
            "what_stays",
            &[
                Step(
                    Shell("echo kept > file; sleep 1000 & echo $! > pid; nohup sleep 1001 >/dev/null 2>&1 &"),
                    &[Ends("Exited(0)")],
                ),
                Step(
                    Shell("cat file; kill -0 $(cat pid) && echo alive; pgrep -fc 'sleep 100[01]'"),
                    &[Part("kept\nalive\n2")],
                ),
                Step(Shell("kill $(pgrep -x sleep); rm file pid"), &[]),
            ],
        ),
        case(
            "a_server_answers_the_next_command",
            &[
                Step(
                    Shell("echo served > page; python3 -m http.server -b 127.0.0.1 8123 >/dev/null 2>&1 &"),
                    &[Ends("Exited(0)")],
                ),
                Step(
                    Shell(
                        "curl -s --retry 50 --retry-delay 1 --retry-connrefused http://127.0.0.1:8123/page; kill $(pgrep -x python3)",
                    ),
                    &[Says("served\n")],
                ),
            ],
        ),
        case(
            "time_out_and_interrupt",
            &[
                Step(ShellTimed("setsid sleep 2001 & sleep 2002", 1), &[Ends("TimedOut")]),
                Step(Shell("pgrep -f 'sleep 200[12]$'"), &[Ends("Exited(1)"), Says("")]),
                Step(ShellInterrupted("echo go; sleep 2003", "go"), &[Ends("Cancelled"), Says("go\n")]),
                Step(
                    ShellInterrupted("trap 'echo caught; exit 5' INT; echo go; while :; do sleep 0.1; done", "go"),
                    &[Ends("Cancelled"), Part("caught")],
                ),
                Step(Shell("pgrep -f 'sleep 2003$'"), &[Ends("Exited(1)")]),
            ],
        ),
        case(
            "long_commands",
            &[
                Step(ShellLong(200 << 10, "echo done; cat"), &[Says("done\n"), Quiet]),
                Step(ShellLong(200 << 10, "exit 7"), &[Ends("Exited(7)")]),
                Step(ShellLong((128 << 10) - 40, "echo $0 $#"), &[Says("/bin/bash 0\n")]),
                Step(ShellLong(200 << 10, "echo $0 $#"), &[Says("/bin/bash 0\n")]),
            ],
        ),
        case(
            "bytes_and_characters",
            &[
                Step(
                    Shell("printf 'h\\303'; sleep 0.2; printf '\\251 \\xf0\\x9f'; sleep 0.2; printf '\\x98\\x80'"),
                    &[Says("hé 😀")],
                ),
                Step(Shell("echo 'é😀' | rev"), &[Says("😀é\n")]),
                Step(Shell("head -c 100000 /dev/zero | wc -c"), &[Says("100000\n")]),
            ],
        ),
        case(
            "without_a_shell",
            &[
                Step(Argv(&["echo", "$HOME", "a b", "*"]), &[Says("$HOME a b *\n"), Ends("Exited(0)")]),
                Step(Argv(&["printf", "%s|", "", "é", "\n"]), &[Says("|é|\n|")]),
                Step(Argv(&["pwd"]), &[Says("/mnt/data\n")]),
                Step(Argv(&["sh", "-c", "exit 9"]), &[Ends("Exited(9)")]),
                Step(Argv(&["no-such-program"]), &[Ends("NotStarted")]),
            ],
        ),
        case(
            "terminal",
            &[
                Step(
                    Typed(
                        "tty; stty size; trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done",
                        &[("ready", Key::Size(50, 132))],
                    ),
                    &[Ends("Exited(4)"), Part("/dev/pts/"), Part("30 100"), Part("50 132")],
                ),
                Step(
                    Typed(
                        "read -p 'name? ' name; echo hello $name; test -t 0 -a -t 1 && echo $TERM",
                        &[("name? ", Key::Text("me\n"))],
                    ),
                    &[Part("hello me\r\nxterm\r\n")],
                ),
                Step(
                    Typed(
                        "trap 'echo int; exit 6' INT; echo ready; while :; do sleep 0.05; done",
                        &[("ready", Key::Text("\u{3}"))],
                    ),
                    &[Ends("Exited(6)"), Part("int")],
                ),
                Step(
                    Typed("exec bash --norc -i", &[("$", Key::Text("echo $((6*7))\n")), ("42", Key::Text("exit 3\n"))]),
                    &[Ends("Exited(3)"), Part("42")],
                ),
                Step(
                    Typed("echo ready; cat; echo over", &[("ready", Key::Text("x\n")), ("x\r\nx", Key::Text(""))]),
                    &[Part("over")],
                ),
            ],
        ),
    ]
}

/// Whether these names of variables are those of the sandbox and of a shell, and none is of how the shell was started.
fn no_more_than_a_login_shell(names: &str) -> Result<(), String> {
    let usual = "HOME LANG LOGNAME OLDPWD PATH PWD PYTHONUNBUFFERED SANDPOOL_EXECUTION SHELL SHLVL TMPDIR USER";
    let more: Vec<_> = names.split_whitespace().filter(|name| !usual.split(' ').any(|known| known == *name)).collect();
    if more.is_empty() { Ok(()) } else { Err(format!("{more:?} are there too")) }
}
