//! Which call a path means. The table is the whole of the data plane; the shape of an answer is chosen by the route,
//! never by the version (only `GET files` and `GET files/{name}` look at that).
//!
//! ```text
//! /subscriptions/S/resourceGroups/R[/providers/Microsoft.App]/sessionPools/POOL [/identifier/ID] /ROUTE
//! /pools/POOL                                                                   [/identifier/ID] /ROUTE
//! ```
//!
//! Repeated slashes count once and one at the end not at all. Words are compared without case; what stands in braces
//! is decoded once.

use axum::http::Method;
use percent_encoding::percent_decode_str;

use crate::auth::{Role, Scope};

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Runs code or a command.
    Execute(Envelope),
    /// Reads an execution again.
    ReadExecution(Envelope),
    /// Stores files of a multipart body.
    Upload(Uploaded),
    /// Lists a directory.
    List(Listed),
    /// One file's record.
    Stat,
    /// A file's bytes.
    Download,
    /// A file's bytes in base64, in JSON.
    DownloadJson,
    /// Removes a file.
    Remove,
    /// A session's record.
    Session,
    /// Ends a session.
    EndSession,
    /// The sessions of the pool.
    Sessions,
    /// What is in the pool's image.
    Metadata,
    /// The older set: a session's record.
    ManagedSession,
    /// The older set: the sessions of the pool.
    ManagedSessions,
    /// The older set: ends a session.
    ManagedStop,
}

impl Action {
    /// The scope that it needs, of a token that names scopes.
    pub(crate) fn scope(self) -> Option<Scope> {
        match self {
            Self::Execute(_) | Self::ReadExecution(_) | Self::EndSession | Self::ManagedStop => Some(Scope::Execute),
            Self::Upload(_) | Self::List(_) | Self::Stat | Self::Download | Self::DownloadJson | Self::Remove => {
                Some(Scope::Files)
            }
            Self::Session | Self::Sessions | Self::Metadata | Self::ManagedSession | Self::ManagedSessions => None,
        }
    }
}

/// The shape of an execution's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Envelope {
    /// `{id, identifier, status, result: {…}}`.
    Modern,
    /// The four fields at the top, and again in `properties`.
    Legacy,
}

/// The shape of an upload's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uploaded {
    /// The first file's record.
    One,
    /// `{value: […]}`.
    Many,
    /// The first file's record with `value` and `$values`.
    Oldest,
}

/// The shape of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// As the version says.
    ByVersion,
    /// `{value: […], $values: […]}`.
    Oldest,
}

/// One route.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// Below the pool. `{x}` is one segment, `{x}:word` a segment that ends so, `{x...}` all segments to the end or to
    /// the next word.
    pub(crate) path: &'static str,
    pub(crate) action: Action,
    /// The least role that may.
    pub(crate) role: Role,
    /// What it does, in words.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test writes the OpenAPI document with it"))]
    pub(crate) about: &'static str,
}

const fn route(method: Method, path: &'static str, action: Action, role: Role, about: &'static str) -> Route {
    Route { method, path, action, role, about }
}

/// Every route; the first that fits is taken.
pub(crate) static ROUTES: [Route; 32] = {
    use Action::{
        Download, DownloadJson, EndSession, Execute, List, ManagedSession, ManagedSessions, ManagedStop, Metadata,
        ReadExecution, Remove, Session, Sessions, Stat, Upload,
    };
    use Envelope::{Legacy, Modern};
    use Role::{Executor, Reader};
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const DELETE: Method = Method::DELETE;
    [
        route(POST, "executions", Execute(Modern), Executor, "Run code or a command."),
        route(GET, "executions/{id}", ReadExecution(Modern), Reader, "Read an execution again."),
        route(POST, "code/execute", Execute(Legacy), Executor, "Run code (2023 and 2024)."),
        route(POST, "execute", Execute(Legacy), Executor, "Run code (2024-09-01)."),
        route(POST, "python/execute", Execute(Legacy), Executor, "Run code (before versions)."),
        route(GET, "execute/{id}", ReadExecution(Legacy), Reader, "Read an execution again (2024-09-01)."),
        route(GET, "code/execute/{id}", ReadExecution(Legacy), Reader, "Read an execution again (2024)."),
        route(POST, "files", Upload(Uploaded::One), Executor, "Upload a file."),
        route(POST, "files/upload", Upload(Uploaded::Many), Executor, "Upload files (2024)."),
        route(POST, "files:uploadFile", Upload(Uploaded::Many), Executor, "Upload files (2024-09-01)."),
        route(POST, "files/{name}:uploadFile", Upload(Uploaded::Many), Executor, "Upload a file (2023)."),
        route(POST, "python/uploadFile", Upload(Uploaded::Oldest), Executor, "Upload a file (before versions)."),
        route(GET, "files", List(Listed::ByVersion), Executor, "List files."),
        route(GET, "python/files", List(Listed::Oldest), Executor, "List files (before versions)."),
        route(GET, "python/downloadFile", Download, Executor, "Download a file (before versions)."),
        route(GET, "files/content/{name...}", Download, Executor, "Download a file (2023 and 2024)."),
        route(GET, "files/{name...}/content", Download, Executor, "Download a file."),
        route(POST, "files/{name}:downloadFile", DownloadJson, Executor, "Download a file in JSON (2024-09-01)."),
        route(GET, "files/{name}:downloadFile", DownloadJson, Executor, "Download a file in JSON (2024-09-01)."),
        route(GET, "files/{name...}", Stat, Executor, "A file's record."),
        route(DELETE, "files/{name...}", Remove, Executor, "Remove a file."),
        route(GET, "session", Session, Reader, "A session's record."),
        route(DELETE, "session", EndSession, Executor, "End a session."),
        route(GET, "listSessions", Sessions, Reader, "The sessions of the pool."),
        route(GET, "metadata", Metadata, Reader, "What is in the pool's image."),
        route(POST, ".management/getSession", ManagedSession, Reader, "A session's record (older set)."),
        route(GET, ".management/getSession", ManagedSession, Reader, "A session's record (older set)."),
        route(POST, ".management/listSessions", ManagedSessions, Reader, "The sessions of the pool (older set)."),
        route(GET, ".management/listSessions", ManagedSessions, Reader, "The sessions of the pool (older set)."),
        route(POST, ".management/stopSession", ManagedStop, Executor, "End a session (older set)."),
        route(GET, "code/executions/{id}", ReadExecution(Modern), Reader, "Read an execution again."),
        route(POST, "code/executions", Execute(Modern), Executor, "Run code or a command."),
    ]
};

/// A path, taken apart.
#[derive(Debug)]
pub(crate) struct Target {
    /// The pool, as written, in lower case: the names of Azure's resources have no case.
    pub(crate) pool: String,
    /// The path up to the pool, as written, without repeated slashes: what links begin with.
    pub(crate) prefix: String,
    /// The identifier, when the path holds it.
    pub(crate) identifier: Option<Vec<u8>>,
    /// What is below the pool.
    pub(crate) below: Vec<Segment>,
}

impl Target {
    /// Where requests go, when the pool's sessions are custom containers and the path is not one that the service keeps.
    pub(crate) fn container(&self, app: &crate::app::App) -> Option<u16> {
        let pool = sandpool_core::ids::PoolName::parse(&self.pool).ok()?;
        let port = app.node.spec(&pool).ok()?.container.as_ref()?.main.port;
        let is_kept = self.below.first().is_some_and(|first| first.is(".management"));
        (!is_kept).then_some(port)
    }

    /// How much of this path leads to the pool.
    pub(crate) fn prefix_length(&self, path: &str) -> usize {
        let count = self.prefix.split('/').filter(|segment| !segment.is_empty()).count();
        let mut seen = 0;
        let mut is_in = false;
        for (at, byte) in path.bytes().enumerate() {
            match (byte == b'/', is_in) {
                (false, false) => (is_in, seen) = (true, seen + 1),
                (true, true) if seen == count => return at,
                (true, _) => is_in = false,
                (false, true) => {}
            }
        }
        path.len()
    }

    /// The pool's MCP server, which is no route of the data plane.
    pub(crate) fn is_mcp(&self) -> bool {
        self.identifier.is_none() && matches!(&self.below[..], [only] if only.is("mcp"))
    }
}

/// One segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Decoded once.
    pub(crate) text: Vec<u8>,
}

impl Segment {
    fn is(&self, word: &str) -> bool {
        self.text.eq_ignore_ascii_case(word.as_bytes())
    }

    fn prefix_of(&self, ending: &str) -> Option<&[u8]> {
        let at = self.text.len().checked_sub(ending.len())?;
        let (name, rest) = self.text.split_at(at);
        (!name.is_empty() && rest.eq_ignore_ascii_case(ending.as_bytes())).then_some(name)
    }
}

/// Takes a path apart; `None` when it leads to no pool.
pub(crate) fn target(path: &str) -> Option<Target> {
    let raw: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let all: Vec<Segment> = raw.iter().map(|segment| Segment { text: percent_decode_str(segment).collect() }).collect();
    let is = |at: usize, word: &str| all.get(at).is_some_and(|segment| segment.is(word));
    let pool = if is(0, "pools") {
        1
    } else if is(0, "subscriptions") && is(2, "resourceGroups") {
        if is(4, "sessionPools") {
            5
        } else if is(4, "providers") && is(5, "Microsoft.App") && is(6, "sessionPools") {
            7
        } else {
            return None;
        }
    } else {
        return None;
    };
    let name = String::from_utf8_lossy(&all.get(pool)?.text).to_ascii_lowercase();
    let prefix = raw[..=pool].iter().flat_map(|segment| ["/", segment]).collect();
    let mut below = all[pool + 1..].to_vec();
    let mut identifier = None;
    if below.len() > 2 && below[0].is("identifier") {
        identifier = Some(below.remove(1).text);
        below.remove(0);
    }
    Some(Target { pool: name, prefix, identifier, below })
}

/// What fits a path.
#[derive(Debug)]
pub(crate) enum Fit {
    /// This route, and what its braces hold, one item for each segment.
    Route(&'static Route, Vec<Vec<u8>>),
    /// The path is one of ours, but not with this method; these fit.
    Methods(Vec<Method>),
    /// None.
    Nothing,
}

/// Finds the route of a path below a pool.
pub(crate) fn fit(method: &Method, below: &[Segment]) -> Fit {
    // An answer to HEAD is that to GET, without its body.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut others = Vec::new();
    for route in &ROUTES {
        if let Some(held) = matched(route.path, below) {
            if route.method == *method {
                return Fit::Route(route, held);
            }
            if !others.contains(&route.method) {
                others.push(route.method.clone());
            }
        }
    }
    if others.is_empty() { Fit::Nothing } else { Fit::Methods(others) }
}

fn matched(pattern: &str, mut below: &[Segment]) -> Option<Vec<Vec<u8>>> {
    let mut words = pattern.split('/').peekable();
    let mut held = Vec::new();
    while let Some(word) = words.next() {
        let (first, rest) = below.split_first()?;
        if word.ends_with("...}") {
            // To the end, or to the one word after it.
            let after = words.next();
            let (last, middle) = if after.is_some() { below.split_last()? } else { (first, below) };
            if middle.is_empty() || after.is_some_and(|after| !last.is(after)) {
                return None;
            }
            held.extend(middle.iter().map(|segment| segment.text.clone()));
            return Some(held);
        }
        match word.strip_prefix('{').and_then(|word| word.split_once('}')) {
            Some((_, "")) => held.push(first.text.clone()),
            Some((_, ending)) => held.push(first.prefix_of(ending)?.to_vec()),
            None if first.is(word) => {}
            None => return None,
        }
        below = rest;
    }
    below.is_empty().then_some(held)
}

#[cfg(test)]
mod tests;
