//! `sandpool doctor --attack`: attackers in sandboxes of a private server, over its HTTP API as everybody uses it, and what held.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use sandpool_attack::{
    ALLOWED, COMMANDS, EGRESS, JAVASCRIPT, Keeps, LOUD, Loud, MEMORY, PIDS, Probe, QUIET, SCENES, Severity, TOOLS,
    WRITABLE, class,
};
use sandpool_bench::server::Server;
use sandpool_image::Store;
use serde_json::{Value, json};

use super::Outcome;
use crate::args::Doctor;
use crate::client::Context;
use crate::failure::Failure;
use crate::home::{quoted, start_time};
use crate::print;

/// The pools: name, container type, what else their settings say, and the image that they need.
const POOLS: [(&str, &str, &str, &str); 5] = [
    ("zygote", "PythonLTS", "interpreterStart: Zygote", "python"),
    ("cold", "PythonLTS", "interpreterStart: Cold", "python"),
    ("egress", "PythonLTS", "", "python"),
    ("node", "NodeLTS", "", "node"),
    ("shell", "Shell", "", "shell"),
];

/// Seconds that a quiet attacker may take, on a machine that has much else to do.
const PATIENCE: u64 = 60;

/// Bytes of output that are kept of an attacker who prints without end.
const OUTPUT: usize = 1 << 20;

/// How long the kernel may take to clean up.
const CLEANUP: Duration = Duration::from_secs(30);

/// Files of the host that no sandbox has a way to.
const HOST_FILES: [&str; 10] = [
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/ld.so.preload",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/kernel/modprobe",
];

#[derive(Debug)]
enum Verdict {
    Held,
    Broken(String),
    Skipped(String),
}

#[derive(Debug)]
struct Judged {
    pool: &'static str,
    id: &'static str,
    verdict: Verdict,
}

impl Judged {
    fn severity(&self) -> Severity {
        class(self.id).1
    }
}

#[derive(Debug, Default)]
struct Report {
    judged: Vec<Judged>,
    /// What of the host is not as it was.
    host: Vec<String>,
}

pub(crate) fn run(context: &Context, doctor: &Doctor) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("attackers need sandboxes, and only root can make those")
            .advise("sudo sandpool doctor --attack"));
    }
    let images = doctor.images.clone().unwrap_or_else(|| context.home.images());
    let present = present(&images)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let report = tokio::task::LocalSet::new().block_on(&runtime, attack(&images, &present, doctor.loud))?;
    if context.json {
        print::json(&report.json())?;
    } else {
        print::out(&report.text())?;
    }
    Ok(u8::from(report.broken().next().is_some() || !report.host.is_empty()))
}

/// The images that are there: the others' attackers are skipped, by name.
fn present(images: &Path) -> Result<BTreeSet<&'static str>, Failure> {
    let missing = || {
        Failure::new(format!("there are no images in {}", images.display()))
            .advise(format!("sandpool image build --images {}", quoted(&images.to_string_lossy())))
    };
    // Who looks makes nothing.
    if !images.join("names").is_dir() {
        return Err(missing());
    }
    let store = Store::open(images).map_err(anyhow::Error::from)?;
    let mut found = BTreeSet::new();
    for (.., image) in POOLS {
        if store.get(image).map_err(anyhow::Error::from)?.is_some() {
            found.insert(image);
        }
    }
    if found.is_empty() { Err(missing()) } else { Ok(found) }
}

fn config(present: &BTreeSet<&str>) -> String {
    let mut text = String::from("listen: 127.0.0.1:0\npools:\n");
    for (name, kind, more, _) in POOLS.iter().filter(|(.., image)| present.contains(image)) {
        let _ = write!(
            text,
            "  - metadata: {{ name: {name} }}\n    spec:\n      containerType: {kind}\n      \
             scaleConfiguration: {{ maxConcurrentSessions: 8, readySessionInstances: 2 }}\n      \
             resources: {{ cpu: 1.0, memory: {MEMORY}, dataDisk: {WRITABLE}, tmpDisk: {WRITABLE}, pids: {PIDS} }}\n",
        );
        if !more.is_empty() {
            let _ = writeln!(text, "      {more}");
        }
        if *name == "egress" {
            let _ = writeln!(text, "      egress: {{ mode: allow-list, allow: [{ALLOWED}] }}");
        }
    }
    text
}

async fn attack(images: &Path, present: &BTreeSet<&'static str>, is_loud: bool) -> Result<Report> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut report = Report::default();
    print::note("looking at the host");
    let before = Host::look(images)?;
    print::note("starting a server of our own");
    let server = Server::configured(&program, images, &config(present)).await?;
    for pool in ["zygote", "cold"] {
        let quiet = QUIET.iter().map(|probe| probe.id).chain(SCENES.iter().map(|scene| scene.id));
        let all = quiet.chain(is_loud.then_some(LOUD).into_iter().flatten().map(|loud| loud.id));
        if report.begins(pool, "python", present, all) {
            python(&server, pool, is_loud, &mut report).await?;
        }
    }
    for (pool, image, kind, tools, probes) in [
        ("egress", "python", "code", TOOLS, EGRESS),
        ("node", "node", "code", "", JAVASCRIPT),
        ("shell", "shell", "command", "", COMMANDS),
    ] {
        if report.begins(pool, image, present, probes.iter().map(|probe| probe.id)) {
            let session = Session::open(&server, pool, "attacker", kind, tools).await?;
            session.quiet(probes, &mut report).await;
            session.close().await?;
        }
    }
    print::note("stopping the server, and looking at the host again");
    let left = Left::of(&server);
    drop(server);
    report.host = left.check().await;
    report.host.extend(before.changed(&Host::look(images)?));
    Ok(report)
}

/// Everything that is tried in a pool of Python.
async fn python(server: &Server, pool: &'static str, is_loud: bool, report: &mut Report) -> Result<()> {
    let neighbour =
        Session::open(server, pool, "neighbour", "code", &format!("{TOOLS}\nsecret = 'neighbours'")).await?;
    let session = Session::open(server, pool, "attacker", "code", TOOLS).await?;
    session.quiet(QUIET, report).await;
    for scene in SCENES {
        let met = async {
            let theirs = neighbour.run(scene.theirs, PATIENCE).await?.succeeded()?;
            let word = json!(theirs.text("stdout").trim());
            session.run(&format!("NEIGHBOUR = {word}\n{}", scene.ours), PATIENCE).await
        };
        report.judge(pool, scene.id, met.await.and_then(|run| run.says(scene.safe)));
    }
    session.close().await?;
    for attacker in is_loud.then_some(LOUD).into_iter().flatten() {
        report.judge(pool, attacker.id, loud(server, pool, attacker, &neighbour).await);
    }
    neighbour.close().await
}

/// One that does harm, in a session of its own, with a neighbour who must go on answering.
async fn loud(server: &Server, pool: &'static str, attacker: &Loud, neighbour: &Session<'_>) -> Result<()> {
    let session = Session::open(server, pool, "loud", "code", &format!("{TOOLS}\nkept = 7")).await?;
    // The neighbour is asked while the attack goes on, and after it.
    let (attacked, during) =
        tokio::join!(session.run(attacker.code, attacker.seconds), neighbour.run("tell(6 * 7)", PATIENCE));
    during.and_then(|run| run.says("42")).context("the neighbour, meanwhile")?;
    let attacked = attacked?;
    let was_told = match &attacked {
        Ran::Lost => attacker.keeps != Keeps::State,
        Ran::Ended(record) => {
            let outcome = record["outcome"].as_str().unwrap_or_default();
            let is_expected = attacker.ends.iter().any(|end| end.eq_ignore_ascii_case(outcome));
            let said = attacked.text("stdout");
            ensure!(
                is_expected && said.contains(attacker.says),
                "expected one of {:?} and {:?}; seen: {}",
                attacker.ends,
                attacker.says,
                attacked.seen()
            );
            ensure!(said.len() <= OUTPUT, "{} bytes of output were kept", said.len());
            record["stateLost"] == true
        }
    };
    neighbour
        .run("tell(secret)", PATIENCE)
        .await
        .and_then(|run| run.says("neighbours"))
        .context("the neighbour, later")?;
    let after = session.run("print(kept)", PATIENCE).await?;
    let keeps = match &after {
        Ran::Lost => Keeps::Nothing,
        Ran::Ended(_) if after.text("stdout") == "7\n" => Keeps::State,
        Ran::Ended(record)
            if after.text("stderr").contains("NameError") && (was_told || record["stateLost"] == true) =>
        {
            Keeps::Nothing
        }
        Ran::Ended(_) => bail!("the session afterwards, without a word of a loss: {}", after.seen()),
    };
    ensure!(
        attacker.keeps == Keeps::Either || attacker.keeps == keeps,
        "its variables were {}kept",
        if keeps == Keeps::State { "" } else { "not " }
    );
    session.close().await
}

/// A session of the server, and how code gets into it.
struct Session<'a> {
    server: &'a Server,
    pool: &'static str,
    path: String,
    kind: &'static str,
}

/// What became of one attacker's code.
enum Ran {
    Ended(Value),
    /// The session was said to be lost.
    Lost,
}

impl<'a> Session<'a> {
    async fn open(
        server: &'a Server,
        pool: &'static str,
        name: &str,
        kind: &'static str,
        tools: &str,
    ) -> Result<Session<'a>> {
        let session = Self { server, pool, path: format!("/pools/{pool}/sessions/{name}"), kind };
        if !tools.is_empty() {
            session.run(tools, PATIENCE).await?.succeeded().context("before the attack")?;
        }
        Ok(session)
    }

    async fn run(&self, code: &str, seconds: u64) -> Result<Ran> {
        let body = json!({ self.kind: code, "timeoutSeconds": seconds, "waitSeconds": seconds + 2 * PATIENCE });
        let path = format!("{}/executions", self.path);
        let answer = self.server.client().send(Method::POST, &path, body.to_string().into()).await?;
        let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match answer.status.as_u16() {
            200 => Ok(Ran::Ended(said)),
            202 => bail!("it did not end"),
            410 => Ok(Ran::Lost),
            status => bail!("{status}: {}", said["message"].as_str().unwrap_or("no reason given")),
        }
    }

    async fn quiet(&self, probes: &[Probe], report: &mut Report) {
        for probe in probes {
            let ran = self.run(probe.code, PATIENCE).await;
            report.judge(self.pool, probe.id, ran.and_then(|run| run.says(probe.safe)));
        }
    }

    async fn close(self) -> Result<()> {
        // One that was lost is gone already.
        let answer = self.server.client().send(Method::DELETE, &self.path, "".into()).await?;
        ensure!(matches!(answer.status.as_u16(), 204 | 404 | 410), "ending the session: {}", answer.status);
        Ok(())
    }
}

impl Ran {
    fn text(&self, stream: &str) -> &str {
        match self {
            Self::Ended(record) => record[stream].as_str().unwrap_or_default(),
            Self::Lost => "",
        }
    }

    fn is_good(&self) -> bool {
        let Self::Ended(record) = self else { return false };
        record["outcome"] == "succeeded" || record["outcome"] == "exited"
    }

    fn succeeded(self) -> Result<Self> {
        ensure!(self.is_good(), "{}", self.seen());
        Ok(self)
    }

    /// Whether it said this and nothing else.
    fn says(&self, expected: &str) -> Result<()> {
        ensure!(
            self.is_good() && self.text("stdout").trim() == expected.trim(),
            "expected {expected:?}; seen: {}",
            self.seen()
        );
        Ok(())
    }

    fn seen(&self) -> String {
        let Self::Ended(record) = self else { return "the session was lost".to_owned() };
        let end = |text: &str| text.chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect::<String>();
        let outcome = record["outcome"].as_str().unwrap_or_default();
        format!("{outcome}, {:?}, {:?}", end(self.text("stdout")), end(self.text("stderr")))
    }
}

impl Report {
    /// Whether a pool's attackers can be run; if not they are skipped, each by its name.
    fn begins(
        &mut self,
        pool: &'static str,
        image: &'static str,
        present: &BTreeSet<&str>,
        ids: impl Iterator<Item = &'static str>,
    ) -> bool {
        if present.contains(image) {
            print::note(&format!("attacking from the pool {pool}"));
            return true;
        }
        let skipped = |id| Judged { pool, id, verdict: Verdict::Skipped(format!("there is no image {image}")) };
        self.judged.extend(ids.map(skipped));
        false
    }

    fn judge(&mut self, pool: &'static str, id: &'static str, found: Result<()>) {
        let verdict = found.map_or_else(|error| Verdict::Broken(format!("{error:#}")), |()| Verdict::Held);
        self.judged.push(Judged { pool, id, verdict });
    }

    fn broken(&self) -> impl Iterator<Item = (&Judged, &str)> {
        self.judged.iter().filter_map(|judged| match &judged.verdict {
            Verdict::Broken(why) => Some((judged, why.as_str())),
            _ => None,
        })
    }

    fn skipped(&self) -> impl Iterator<Item = (&Judged, &str)> {
        self.judged.iter().filter_map(|judged| match &judged.verdict {
            Verdict::Skipped(why) => Some((judged, why.as_str())),
            _ => None,
        })
    }

    fn text(&self) -> String {
        let mut classes: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for judged in &self.judged {
            let counts = classes.entry(class(judged.id).0).or_default();
            counts[match judged.verdict {
                Verdict::Held => 0,
                Verdict::Broken(_) => 1,
                Verdict::Skipped(_) => 2,
            }] += 1;
        }
        let mut text = format!("{:<18} {:>5} {:>7} {:>8}\n", "CLASS", "HELD", "BROKEN", "SKIPPED");
        for (class, [held, broken, skipped]) in classes {
            let _ = writeln!(text, "{class:<18} {held:>5} {broken:>7} {skipped:>8}");
        }
        for (Judged { pool, id, .. }, why) in self.skipped() {
            let _ = writeln!(text, "skipped  {pool} {id}: {why}");
        }
        for (judged, why) in self.broken() {
            let Judged { pool, id, .. } = judged;
            let _ = writeln!(text, "BROKEN   {pool} {id} ({}): {why}", judged.severity().word());
        }
        for change in &self.host {
            let _ = writeln!(text, "BROKEN   the host: {change}");
        }
        let tried = self.judged.len() - self.skipped().count();
        let _ = match self.broken().count() {
            0 if self.host.is_empty() => {
                writeln!(text, "All of {tried} attackers were held, and the host is as it was.")
            }
            0 => writeln!(text, "All of {tried} attackers were held, but the host is not as it was."),
            broken => writeln!(text, "{broken} of {tried} attackers got through."),
        };
        text
    }

    fn json(&self) -> Value {
        let attackers = self.judged.iter().map(|judged| {
            let (verdict, why) = match &judged.verdict {
                Verdict::Held => ("held", None),
                Verdict::Broken(why) => ("broken", Some(why)),
                Verdict::Skipped(why) => ("skipped", Some(why)),
            };
            json!({
                "pool": judged.pool, "id": judged.id, "class": class(judged.id).0,
                "severity": judged.severity().word(), "verdict": verdict, "why": why,
            })
        });
        json!({ "attackers": attackers.collect::<Vec<_>>(), "host": self.host })
    }
}

/// What of the host no attacker may change.
struct Host(BTreeMap<String, String>);

impl Host {
    fn look(images: &Path) -> Result<Self> {
        let mut seen = BTreeMap::new();
        for file in HOST_FILES {
            seen.insert(file.to_owned(), std::fs::read_to_string(file).unwrap_or_else(|error| error.to_string()));
        }
        let links = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
        let links = links.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
        seen.insert("network links".to_owned(), links.collect::<Vec<_>>().join(" "));
        let store = Store::open(images)?;
        for image in POOLS.iter().map(|(.., image)| image).collect::<BTreeSet<_>>() {
            let Some(image) = store.get(image)? else { continue };
            let mut hasher = DefaultHasher::new();
            let mut count = 0_u64;
            tree(&image.rootfs, &mut hasher, &mut count)
                .with_context(|| format!("cannot look at {}", image.rootfs.display()))?;
            let found = format!("{count} files, {:016x}", hasher.finish());
            seen.insert(format!("files below {}", image.rootfs.display()), found);
        }
        Ok(Self(seen))
    }

    fn changed(&self, after: &Self) -> Vec<String> {
        let Self(before) = self;
        let changed = before.iter().filter(|(name, value)| after.0.get(*name) != Some(*value));
        changed.map(|(name, _)| format!("{name} changed")).collect()
    }
}

/// What there is of every file of a tree, but for its bytes: its size and the time at which it was last written stand for them.
fn tree(directory: &Path, hasher: &mut DefaultHasher, count: &mut u64) -> std::io::Result<()> {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    names.sort();
    for path in names {
        let about = path.symlink_metadata()?;
        (&path, about.ino(), about.mode(), about.uid(), about.gid(), about.size()).hash(hasher);
        (about.mtime(), about.mtime_nsec()).hash(hasher);
        *count += 1;
        if about.is_dir() {
            tree(&path, hasher, count)?;
        }
    }
    Ok(())
}

/// What a server must leave nothing of.
struct Left {
    home: String,
    processes: BTreeMap<i32, u64>,
    groups: Vec<PathBuf>,
}

impl Left {
    fn of(server: &Server) -> Self {
        let processes = server.sandboxed().into_iter().chain([server.launcher()]);
        Self {
            home: server.home().display().to_string(),
            processes: processes.filter_map(|pid| Some((pid, start_time(pid)?))).collect(),
            groups: server.group_roots(),
        }
    }

    async fn check(&self) -> Vec<String> {
        let end = Instant::now() + CLEANUP;
        loop {
            let mut found = Vec::new();
            let alive = self.processes.iter().filter(|(pid, start)| start_time(**pid) == Some(**start));
            found.extend(alive.map(|(pid, _)| format!("the process {pid} is still there")));
            let groups = self.groups.iter().filter(|group| group.exists());
            found.extend(groups.map(|group| format!("the control group {} is still there", group.display())));
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let mounts = mounts.lines().filter(|line| line.contains(&self.home));
            found.extend(mounts.map(|line| format!("a mount is still there: {line}")));
            if found.is_empty() || Instant::now() > end {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
