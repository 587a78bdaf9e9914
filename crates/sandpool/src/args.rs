//! What people type. Each flag says its unit and its environment variable; nothing here acts.

use sandpool_node::chain::Link;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::settings::Size;
use crate::settings::egress::EgressLimits;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sandpool_bench::scenario::Scenario;
use sandpool_http::auth::Scope;

/// Runs code that nobody has read, in warm, isolated sandboxes on this machine
///
/// A pool keeps sandboxes ready; a session is a name of your choice bound to one sandbox. `sandpool up` starts
/// everything, `sandpool run` runs something.
#[derive(Debug, Parser)]
#[command(name = "sandpool", version, propagate_version = false, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong use. `run` and `shell` pass the code's own exit code through."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// State directory: images, keys, certificates, logs [default: /var/lib/sandpool as root, else
    /// ~/.local/share/sandpool]
    #[arg(long, global = true, env = "SANDPOOL_HOME", hide_env_values = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Address of the server to talk to [default: the one that runs on this state directory]
    #[arg(long, global = true, env = "SANDPOOL_ENDPOINT", hide_env_values = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Print JSON instead of text, also for errors
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Form of the log on standard error; what is logged is set by RUST_LOG [default: warn, the server: info]
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prepare what is missing and run the server with its default pools: python, node, shell
    Up(Up),
    /// Run the server from a configuration file
    Serve(Serve),
    /// Stop the server of this state directory
    Down(Down),
    /// Say what this host can do, what is missing, and how to get it
    Doctor(Doctor),
    /// Print shell exports that point unmodified clients to this server: eval "$(sandpool env)"
    Env(Env),
    /// Print a token, or replace the signing key
    Token(Token),
    /// Print an address that opens the console in a browser, signed in
    Console(Console),
    /// Run code or a command in a session; its exit code is passed through
    Run(Run),
    /// Open a terminal in a session, or come back to one: Ctrl-] d leaves it, and it goes on
    Shell(Shell),
    /// List, upload, download and remove a session's files (in /mnt/data)
    #[command(subcommand)]
    Files(Files),
    /// List, look at and end sessions
    #[command(subcommand)]
    Session(Session),
    /// List, look at, make, change and remove pools
    #[command(subcommand)]
    Pool(Pool),
    /// Be an MCP server on standard input and output, for hosts that start their servers themselves
    Mcp(Mcp),
    /// Build, list and remove images
    #[command(subcommand)]
    Image(Image),
    /// Look at the settings
    #[command(subcommand)]
    Config(Config),
    /// Who did what to which session or pool, and whether anybody changed what is written of it
    #[command(subcommand)]
    Journal(Journal),
    /// Measure what a caller feels, beside the same work without Sandpool
    #[command(subcommand)]
    Bench(Bench),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The unprivileged half of a running server; the launcher starts it
    #[command(name = "__server", hide = true)]
    Server {
        /// What it is told, as `up` wrote it
        #[arg(long)]
        plan: PathBuf,
    },
    /// Reads archives and layers of images; `image pull`, `image import` and the puller start it
    #[command(name = "__unpack", hide = true)]
    Unpack,
    /// Gets images for the server; `up` and `serve` start it
    #[command(name = "__puller", hide = true)]
    Puller {
        /// The directory of images
        #[arg(long)]
        images: PathBuf,
        /// What runs machines, as JSON
        #[arg(long)]
        machines: String,
        /// Who is heard
        #[arg(long)]
        user: u32,
        /// With whom it ends
        #[arg(long)]
        parent: i32,
    },
    /// The egress proxy of a running server; the launcher starts it
    #[command(name = "__egress", hide = true)]
    Egress {
        /// Where it records its decisions
        #[arg(long)]
        records: PathBuf,
        /// What one sandbox may use of it, as JSON
        #[arg(long, value_parser = |text: &str| serde_json::from_str::<EgressLimits>(text))]
        limits: EgressLimits,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:7300]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Listen for TLS too, with a certificate of a local authority [default address: 127.0.0.1:7343]
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:7343")]
    pub(crate) https: Option<SocketAddr>,
    /// Return when the pools are ready; `sandpool down` stops the server
    #[arg(long)]
    pub(crate) detach: bool,
    /// Sessions that each pool may have at the same time [default: 250]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max_sessions: Option<u32>,
    /// Sandboxes that each pool keeps ready, at least [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) ready: Option<u32>,
    /// Seconds without use after which a session ends [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub(crate) cooldown: Option<u64>,
    /// Which wall stands around the sandboxes of the pools [default: process]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub(crate) isolation: Option<Isolation>,
    /// Directory of the images [default: <home>/images]
    #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
}

/// A level of isolation, as pools name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    /// Namespaces, filters and limits of this host's kernel
    Process,
    /// The same through an OCI runtime
    Container,
    /// A kernel of its own for each, behind a VMM
    Microvm,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Serve {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Listen here instead of where the file says
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Return when the pools are ready; `sandpool down` stops the server
    #[arg(long)]
    pub(crate) detach: bool,
    /// Directory of the images [default: what the file says, else <home>/images]
    #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Seconds to wait for an orderly end before everything is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Fail also when something is only weaker than it could be
    #[arg(long)]
    pub(crate) strict: bool,
    /// Run attackers in sandboxes of a server of its own, and say what held; needs root and images, and some minutes
    #[arg(long)]
    pub(crate) attack: bool,
    /// Also run those that do harm to their own sandbox: bombs of processes, memory, files and output
    #[arg(long, requires = "attack")]
    pub(crate) loud: bool,
    /// Directory of the images [default: <home>/images]
    #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
    /// Settings that say where OCI runtimes are [default: those of the server that runs]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Env {
    /// Point clients to the TLS listener (see `up --https`), and let them trust its certificate
    #[arg(long)]
    pub(crate) https: bool,
    /// The pool of the *_POOL_MANAGEMENT_ENDPOINT variables
    #[arg(short, long, value_name = "POOL", default_value = "python")]
    pub(crate) pool: String,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Token {
    /// The token is good for this pool only [default: every pool]
    #[arg(short, long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// The token is good for this session only
    #[arg(short, long, value_name = "SESSION")]
    pub(crate) session: Option<String>,
    /// Whose it is: a tenant of the settings [default: the operator's own]
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// What its bearer may do: reader looks, executor runs code and uses files, admin also manages
    #[arg(long, value_enum, default_value_t = RoleWord::Executor, value_name = "ROLE")]
    pub(crate) role: RoleWord,
    /// What it may be used for only: sessions:execute, sessions:files, sessions:admin; can be given again [default: all that the role
    /// may]
    #[arg(long, value_name = "SCOPE", value_parser = parse_scope)]
    pub(crate) scope: Vec<Scope>,
    /// How long it is good for: seconds, or a number with s, m, h or d [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) ttl: Option<Duration>,
    #[command(subcommand)]
    pub(crate) action: Option<TokenAction>,
}

#[derive(Debug, Args)]
pub(crate) struct Console {
    /// What its bearer may do: reader looks, executor runs code and uses files, admin also manages
    #[arg(long, value_enum, default_value_t = RoleWord::Admin, value_name = "ROLE")]
    pub(crate) role: RoleWord,
    /// The console sees this pool only [default: every pool]
    #[arg(short, long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// Whose it is: a tenant of the settings [default: the operator's own]
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// How long it is good for: seconds, or a number with s, m, h or d [default: 12h]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) ttl: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenAction {
    /// Make a new signing key. Tokens of the old key stay good until they expire
    Rotate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Journal {
    /// List the newest records, the last one at the end
    Ls {
        #[command(flatten)]
        filter: JournalFilter,
        /// How many, at most
        #[arg(short = 'n', long, default_value_t = 50, value_name = "COUNT")]
        limit: u32,
    },
    /// Say whether all records are there and as they were written, and which are not; the exit code is 1 then
    Verify {
        /// An exported file [default: the journal of this state directory]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// A last record that an earlier verification printed: it must be there, with that hash; can be given again
        #[arg(long, value_name = "NUMBER:HASH")]
        noted: Vec<Link>,
    },
    /// Print all records as lines of JSON, which `journal verify FILE` can verify anywhere
    Export {
        /// Only what follows this record
        #[arg(long, value_name = "NUMBER")]
        after: Option<i64>,
    },
}

/// Which records are meant.
#[derive(Debug, clap::Args)]
pub(crate) struct JournalFilter {
    /// Only those of this pool
    #[arg(short, long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// Only those of this session
    #[arg(short, long, value_name = "SESSION")]
    pub(crate) session: Option<String>,
    /// Only those of this tenant
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only what this token's subject did
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) subject: Option<String>,
    /// Only this, such as session.deleted, or all that begins so, such as session
    #[arg(long, value_name = "WHAT")]
    pub(crate) what: Option<String>,
}

/// A role, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleWord {
    Reader,
    Executor,
    Admin,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: that of the command; for code 0, or 1 when it raises; 124 when the time-out passed, \
    130 when it was interrupted, 127 when the command could not be started.\n\
    Without -s the session is thrown away afterwards."
)]
pub(crate) struct Run {
    /// The pool [default: by FILE's name, else shell for a command and python for code]
    #[arg(short, long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// The session: found, or made [default: a new one, ended afterwards]
    #[arg(short, long, value_name = "SESSION")]
    pub(crate) session: Option<String>,
    /// Code to run, instead of a file
    #[arg(short, value_name = "CODE", conflicts_with_all = ["file", "command"])]
    pub(crate) code: Option<String>,
    /// Wall-clock limit of the execution, in seconds [default: the pool's longest]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Run the code in a fresh, empty namespace that is thrown away afterwards
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Directory in which images that the code shows are saved
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) images: PathBuf,
    /// File with the code to run; `-` or nothing reads it from standard input
    #[arg(value_name = "FILE", conflicts_with = "command")]
    pub(crate) file: Option<PathBuf>,
    /// A command and its arguments; standard input is passed on to it
    #[arg(last = true, value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// The pool
    #[arg(short, long, value_name = "POOL", default_value = "shell")]
    pub(crate) pool: String,
    /// The session: found, or made [default: a new one, ended afterwards]
    #[arg(short, long, value_name = "SESSION")]
    pub(crate) session: Option<String>,
    /// The session's terminal: found, or made [default: main, or a new one for a COMMAND]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// A terminal of its own, whatever others there are
    #[arg(long, conflicts_with = "name")]
    pub(crate) new: bool,
    /// What to run in a new terminal [default: bash -l]
    #[arg(last = true, value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Which session a file command means.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The pool
    #[arg(short, long, value_name = "POOL", default_value = "python")]
    pub(crate) pool: String,
    /// The session
    #[arg(short, long, value_name = "SESSION")]
    pub(crate) session: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Files {
    /// List a directory
    Ls {
        #[command(flatten)]
        which: Which,
        /// The directory: relative to /mnt/data, or absolute
        #[arg(value_name = "PATH", default_value = "")]
        path: String,
        /// Also what is in directories below
        #[arg(short, long)]
        recursive: bool,
    },
    /// Upload files; the session is made if it is not there
    Put {
        #[command(flatten)]
        which: Which,
        /// Files of this machine; `-` is standard input and needs --to
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// Name in the session, or directory if it ends in `/` [default: the file's own name in /mnt/data]
        #[arg(long, value_name = "PATH")]
        to: Option<String>,
    },
    /// Download a file
    Get {
        #[command(flatten)]
        which: Which,
        /// The file in the session
        #[arg(value_name = "PATH")]
        path: String,
        /// Where to put it; `-` is standard output [default: its own name in the current directory]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Remove files, or directories with all in them
    Rm {
        #[command(flatten)]
        which: Which,
        /// The files in the session
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Session {
    /// Who holds which slot, and until when
    Ls {
        /// Only this pool's
        #[arg(short, long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// One session, with what it uses and the wall it has
    Get {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Make a session, or find it; with what it is given when it is made
    Open {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// A variable of its environment
        #[arg(long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// A secret that it uses at these hosts and does not have; its value is that of the variable NAME here. The pool says
        /// `sessionSecrets`
        #[arg(long, value_name = "NAME=HOST[,HOST...]")]
        secret: Vec<String>,
        /// Narrow it to this policy, a file of YAML or JSON with the keys of a pool's `egress`; - is standard input
        #[arg(long, value_name = "FILE")]
        egress: Option<PathBuf>,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// An address under which anybody who has it reaches a port of a session, for a while
    Preview {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// The port, on the session's loopback
        #[arg(value_name = "PORT")]
        port: u16,
        /// How long the address is good, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        ttl: u64,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// What a session may reach: look at it, or narrow it
    Egress {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// Narrow it to this policy, a file of YAML or JSON with the keys of a pool's `egress`; - is standard input
        #[arg(long, value_name = "FILE", conflicts_with = "clear")]
        set: Option<PathBuf>,
        /// Give back all that the pool may reach
        #[arg(long)]
        clear: bool,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Put a session on the host's disk, and end its sandbox; the next use brings it back
    Suspend {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// End what runs in it; else it is not suspended
        #[arg(long)]
        force: bool,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Bring a suspended session back, as every use does
    Resume {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Copy a session to the host's disk while it goes on; or list, or remove, its copies
    Snapshot {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// What the copy is called
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// List its copies
        #[arg(long, conflicts_with = "name")]
        list: bool,
        /// Remove this copy, by its id or its name
        #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = ["name", "list"])]
        rm: Option<String>,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Make another session of a session, or of a copy of it
    Fork {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The session
        #[arg(value_name = "SESSION")]
        session: String,
        /// The new session
        #[arg(value_name = "NEW")]
        new: String,
        /// A copy of it, by its id or its name [default: as it is now]
        #[arg(long, value_name = "SNAPSHOT")]
        snapshot: Option<String>,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// End sessions and all that is in them
    Rm {
        /// The pool
        #[arg(short, long, value_name = "POOL", default_value = "python")]
        pool: String,
        /// The sessions
        #[arg(value_name = "SESSION", required = true)]
        sessions: Vec<String>,
        /// Whose it is [default: the token's own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// All pools
    Ls,
    /// One pool; with -o yaml as an object that can be applied again
    Get {
        /// The pool
        #[arg(value_name = "POOL")]
        pool: String,
        /// How it is shown [default: what people want to know]
        #[arg(short, long, value_name = "FORM")]
        output: Option<ObjectForm>,
    },
    /// Make pools, or change them: sessions that are there keep their sandboxes
    Apply {
        /// A file of objects, YAML or JSON; - for standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Check all of it, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what applying a file would change. Exits with 1 if it would change anything
    Diff {
        /// A file of objects, YAML or JSON; - for standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove pools that were applied, and end their sessions
    Rm {
        /// The pools
        #[arg(value_name = "POOL", required = true)]
        pools: Vec<String>,
    },
    /// Print the key of a pool's MCP server, for the header x-ms-apikey
    McpKey {
        /// The pool
        #[arg(value_name = "POOL")]
        pool: String,
        /// Make a new one. The one before is good for five more minutes
        #[arg(long)]
        rotate: bool,
    },
}

/// How an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectForm {
    Yaml,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Mcp {
    /// Sessions of this pool only [default: every pool]
    #[arg(short, long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Build images that are missing
    Build {
        /// Which: python, node, shell [default: all]
        #[arg(value_name = "IMAGE")]
        names: Vec<String>,
        /// Directory of the images [default: <home>/images]
        #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
        images: Option<PathBuf>,
    },
    /// Get an image from a registry
    Pull(ImagePull),
    /// Take an image out of a file or directory: OCI layout, oci-archive, docker-archive
    Import {
        /// The file or directory
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Which one, if there are several: its tag
        #[arg(long, value_name = "TAG")]
        tag: Option<String>,
        #[command(flatten)]
        foreign: Foreign,
    },
    /// Remove parts of images that were removed or not pulled whole
    Prune {
        /// Directory of the images [default: <home>/images]
        #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
        images: Option<PathBuf>,
    },
    /// List images
    Ls {
        /// Directory of the images [default: <home>/images]
        #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
        images: Option<PathBuf>,
    },
    /// Remove images
    Rm {
        /// Which
        #[arg(value_name = "IMAGE", required = true)]
        names: Vec<String>,
        /// Directory of the images [default: <home>/images]
        #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
        images: Option<PathBuf>,
    },
}

/// How an image of others is kept.
#[derive(Clone, Debug, Args)]
pub(crate) struct Foreign {
    /// What it is called here [default: the last part of its own name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The most that its files may take, unpacked
    #[arg(long, value_name = "SIZE", default_value = "16Gi", value_parser = Size::parse)]
    pub(crate) max_size: Size,
    /// Directory of the images [default: <home>/images]
    #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ImagePull {
    /// The image: REGISTRY/REPOSITORY, with :TAG or @DIGEST
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
    /// Sign in as this user; the password or token is read from standard input
    #[arg(long, value_name = "USER")]
    pub(crate) username: Option<String>,
    /// A file of credentials, as `docker login` and `podman login` write it [default: ~/.docker/config.json]
    #[arg(long, value_name = "FILE", conflicts_with = "username")]
    pub(crate) auth_file: Option<PathBuf>,
    /// A certificate (PEM) to trust besides the host's own
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Refuse it unless it is signed with this public key (PEM), as `cosign sign --key` does
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Speak HTTP without TLS; loopback is spoken with so anyway
    #[arg(long)]
    pub(crate) plain_http: bool,
    #[command(flatten)]
    pub(crate) foreign: Foreign,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print the effective settings, and where they come from. Secrets print as ***
    Show {
        /// A configuration file [default: the running server's settings, else the defaults of `up`]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Measure scenarios on a server of its own, each beside its floor, and keep what was found
    Run(BenchRun),
    /// List the scenarios
    List,
    /// Measure two programs in turns and print ratios with 95 % intervals
    Compare(BenchCompare),
    /// Print the report of a run again
    Show {
        /// The run's directory
        #[arg(value_name = "DIR")]
        run: PathBuf,
    },
    /// The same work without Sandpool; a run starts it
    #[command(name = "__floor", hide = true)]
    Floor {
        /// What it is told, as JSON
        plan: String,
    },
}

/// What is measured, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchWhat {
    /// Samples for a look, not for a judgement: seconds instead of minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Requests arrive at random times, from this seed, instead of evenly
    #[arg(long, value_name = "SEED")]
    pub(crate) poisson: Option<u64>,
    /// Directory of the images [default: <home>/images]
    #[arg(long, env = "SANDPOOL_IMAGES", hide_env_values = true, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchRun {
    #[command(flatten)]
    pub(crate) what: BenchWhat,
    /// Directory of the run [default: bench/runs/<date>-<machine>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The program that is measured [default: this one]
    #[arg(long, value_name = "PATH")]
    pub(crate) program: Option<PathBuf>,
    /// Then run other systems too: the scripts in this directory [default: bench/peers]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "bench/peers")]
    pub(crate) peers: Option<PathBuf>,
    /// The scenarios [default: all but `capacity`]
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenarios: Vec<Scenario>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchCompare {
    #[command(flatten)]
    pub(crate) what: BenchWhat,
    /// Turns of each program in each scenario [default: the scenario's own number, at least 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub(crate) rounds: Option<u32>,
    /// The first program
    #[arg(value_name = "A")]
    pub(crate) a: PathBuf,
    /// The second program
    #[arg(value_name = "B")]
    pub(crate) b: PathBuf,
    /// The scenarios
    #[arg(value_name = "SCENARIO", default_value = "warm")]
    pub(crate) scenarios: Vec<Scenario>,
}

/// Reads the name of a scope.
fn parse_scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| format!("a scope is one of {}", Scope::ALL.map(Scope::word).join(", ")))
}

/// Reads `90`, `90s`, `15m`, `12h` or `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write seconds, or a number with s, m, h or d, such as 90s or 12h");
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], unit),
        _ => (text, 's'),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    match number.checked_mul(factor) {
        Some(seconds @ 1..=315_360_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not between 1 second and 3650 days")),
    }
}
