//! What is told to the journal: who did what to which session or pool. Never what was in it.

use std::fmt::Write as _;

use sandpool_core::ids::{PoolName, SessionKey};
use sandpool_node::{Deed, ExecuteRequest, ExecutionHandle, Node, Work};
use sandpool_objects::Applied;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::auth::Principal;

/// Something that was done to a session.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Did {
    /// A file was written.
    WroteFile,
    /// A file was removed.
    RemovedFile,
    /// It was ended.
    Deleted,
    /// What it may reach was narrowed.
    Narrowed,
    /// It may reach what its pool may again.
    Widened,
    /// A terminal was made in it.
    OpenedTerminal,
    /// Somebody looks at a terminal of it that was there, and may type.
    AttachedTerminal,
    /// A terminal of it was hung up.
    EndedTerminal,
    /// It was copied to the disk.
    Copied,
    /// It was made of another.
    Forked,
}

impl Did {
    fn word(self) -> &'static str {
        match self {
            Self::WroteFile => "file.written",
            Self::RemovedFile => "file.removed",
            Self::Deleted => "session.deleted",
            Self::Narrowed => "egress.narrowed",
            Self::Widened => "egress.widened",
            Self::OpenedTerminal => "terminal.opened",
            Self::AttachedTerminal => "terminal.attached",
            Self::EndedTerminal => "terminal.ended",
            Self::Copied => "session.copied",
            Self::Forked => "session.forked",
        }
    }
}

/// Somebody did this to a session that is there.
pub(crate) fn did(node: &Node, who: &Principal, (pool, key): (&PoolName, &SessionKey), did: Did, about: &str) {
    node.did(pool, key, &who.subject, did.word(), about.to_owned());
}

/// What is run, as it is told to the journal: its kind, and a digest.
pub(crate) struct Digested(String);

impl Digested {
    /// Of a request.
    pub(crate) fn of(request: &ExecuteRequest) -> Self {
        let mut hash = Sha256::new();
        let kind = match &request.work {
            Work::Code { code, .. } => {
                hash.update(code);
                "code"
            }
            Work::Shell { command, .. } => {
                hash.update(command);
                "command"
            }
            Work::Argv { argv, .. } | Work::Terminal { argv, .. } | Work::Service { argv, .. } => {
                // Each argument ends with a zero byte, which is in none.
                for argument in argv {
                    hash.update(argument);
                    hash.update([0]);
                }
                "program"
            }
        };
        Self(format!("{kind} sha256:{}", hex::encode(hash.finalize())))
    }

    /// It was accepted.
    pub(crate) fn accepted(self, who: &Principal, handle: &ExecutionHandle) {
        let mut detail = self.0;
        // Writing to a string does not fail.
        let _ = write!(detail, " execution:{}", handle.id());
        handle.did(&who.subject, "execution.accepted", detail);
    }
}

impl App {
    /// Somebody applied a pool.
    pub(crate) fn did_apply(&self, who: &Principal, applied: &Applied) {
        if matches!(applied, Applied::Unchanged(_)) {
            return;
        }
        let kept = applied.kept();
        // Plain data: this cannot fail.
        let body = serde_json::to_vec(&kept.object).unwrap_or_default();
        let detail = format!("generation:{} sha256:{}", kept.generation, hex::encode(Sha256::digest(body)));
        self.did_to(who, &kept.object.metadata.name, "pool.applied", detail);
    }

    /// Somebody did something to a pool.
    pub(crate) fn did_to(&self, who: &Principal, pool: &str, what: &'static str, detail: String) {
        let (tenant, subject) = (who.tenant.to_string(), who.subject.clone());
        self.node.audit(Deed { what, tenant, subject, pool: pool.to_owned(), detail });
    }
}
