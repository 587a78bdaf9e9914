//! Bundles `console/` into `OUT_DIR/site`, and lists what came out as Rust.
//!
//! npm works on a copy in `OUT_DIR`: the source tree is never written to, and holds no code of others. Where npm is not there, or cannot
//! install, the build goes on with a page that says so.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the bundle is made from.
const SOURCES: [&str; 6] = ["package.json", "package-lock.json", "build.mjs", "index.html", "output.html", "src"];

/// The page of a build without npm.
const PLAIN: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Sandpool: no console</title>\n\
<h1>This build has no console</h1>\n<p>The console is made when Sandpool is built, and needs Node.js 18 or newer with npm for that (Debian: \
<code>apt-get install nodejs npm</code>). Build again with them: <code>cargo build --release --package sandpool</code>.\n\
<p>The API and the command line are whole without it.\n</html>\n";

fn main() -> Result<(), Box<dyn Error>> {
    let console = PathBuf::from(var("CARGO_MANIFEST_DIR")?).join("../../console");
    let out = PathBuf::from(var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=build.rs");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", console.join(source).display());
    }
    let site = out.join("site");
    let why = match install(&console, &out)? {
        Installed::Yes(work) => {
            bundle(&work, &site)?;
            None
        }
        Installed::No(why) => Some(why),
    };
    if let Some(why) = &why {
        println!("cargo:warning=this build has no console: {why}");
        // Tried again by the next build: what is not there has changed, to cargo.
        println!("cargo:rerun-if-changed={}", out.join("no-console").display());
        empty(&site)?;
        fs::write(site.join("index.html"), PLAIN)?;
    }
    fs::write(out.join("assets.rs"), listed(&site, why.is_none())?)?;
    Ok(())
}

enum Installed {
    /// What is needed is there, in this directory.
    Yes(PathBuf),
    No(String),
}

/// Copies the sources, and installs what they need, if that has changed.
fn install(console: &Path, out: &Path) -> Result<Installed, Box<dyn Error>> {
    let npm = Command::new("npm").arg("--version").output();
    if !npm.is_ok_and(|done| done.status.success()) {
        return Ok(Installed::No("npm is not here (Debian: apt-get install nodejs npm)".to_owned()));
    }
    let work = out.join("console");
    fs::create_dir_all(&work)?;
    for source in SOURCES {
        let (from, to) = (console.join(source), work.join(source));
        if from.is_dir() {
            empty(&to)?;
            for entry in fs::read_dir(&from)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    fs::copy(entry.path(), to.join(entry.file_name()))?;
                }
            }
        } else {
            fs::copy(from, to)?;
        }
    }
    let lock = fs::read(work.join("package-lock.json"))?;
    let stamp = work.join("installed");
    if fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(Installed::Yes(work));
    }
    let done = Command::new("npm")
        .args(["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&work)
        .output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
        return Ok(Installed::No(format!("npm ci failed: {first}")));
    }
    fs::write(&stamp, lock)?;
    Ok(Installed::Yes(work))
}

fn bundle(work: &Path, site: &Path) -> Result<(), Box<dyn Error>> {
    empty(site)?;
    let done = Command::new("node").arg("build.mjs").arg(site).current_dir(work).output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(format!("the console does not build:\n{said}").into());
    }
    Ok(())
}

/// Makes a directory with nothing in it.
fn empty(directory: &Path) -> Result<(), Box<dyn Error>> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(fs::create_dir_all(directory)?)
}

/// The files of the site as a constant. `x.br` and `x.gz` are other forms of `x`.
fn listed(site: &Path, is_built: bool) -> Result<String, Box<dyn Error>> {
    let mut paths = Vec::new();
    collect(site, &mut paths)?;
    paths.sort();
    let mut text = format!(
        "/// It is the console itself, and not a page that says that there is none.\npub const IS_BUILT: bool = {is_built};\n\n\
         /// All files.\npub static ASSETS: &[Asset] = &[\n"
    );
    for path in paths.iter().filter(|path| !has_end(path, "br") && !has_end(path, "gz")) {
        let name = path.strip_prefix(site)?.to_str().ok_or("a path that is not UTF-8")?;
        let bytes = fs::read(path)?;
        let packed = |end: &str| {
            let other = PathBuf::from(format!("{}.{end}", path.display()));
            if other.exists() { format!("Some(include_bytes!({other:?}))") } else { "None".to_owned() }
        };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        writeln!(
            text,
            "    Asset {{ path: {name:?}, kind: {:?}, tag: \"{:016x}\", plain: include_bytes!({path:?}), gzip: {}, brotli: {} }},",
            kind(path),
            hasher.finish(),
            packed("gz"),
            packed("br"),
        )?;
    }
    text.push_str("];\n");
    Ok(text)
}

fn collect(directory: &Path, into: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, into)? } else { into.push(path) }
    }
    Ok(())
}

fn has_end(path: &Path, end: &str) -> bool {
    path.extension().is_some_and(|own| own == end)
}

fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|end| end.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn var(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}
