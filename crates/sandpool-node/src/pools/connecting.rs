//! How a sandbox becomes a session's own.

use std::sync::Arc;
use std::time::Duration;

use sandpool_core::ids::{ExecutionId, SandboxId};
use sandpool_driver::{DriverError, Owner};
use sandpool_store::Place;
use sandpool_wire::agent::{Activation, Answer, Call};

use super::PoolState;
use crate::api::*;
use crate::journal;
use crate::link::Link;
use crate::metrics::{Ended, Loss};
use crate::owner::OwnerRecord;
use crate::session::{Activity, Session};

/// The longest that it may take to give a sandbox to a session, or to find one again after a restart.
const CONNECT: Duration = Duration::from_secs(60);

/// The pause between two attempts to reach a sandbox that has a session.
const REDIAL: Duration = Duration::from_millis(200);

/// From where a session comes to its sandbox.
pub(super) enum Coming {
    /// From nowhere: the sandbox is new, and is given this.
    Fresh(Arc<Given>),
    /// It is in it: it was there before this server.
    Back,
    /// It is in it: the sandbox was loaded, and is given this again.
    Machine(Arc<Given>),
}

impl PoolState {
    /// The stream to a sandbox whose session was there before this server: it is worth more than one attempt. Whoever calls sets the limit.
    async fn dial_patiently(&self, sandbox: SandboxId) -> Result<sandpool_driver::Stream, DriverError> {
        loop {
            match self.dial(sandbox).await {
                Err(DriverError::Unavailable { .. }) => tokio::time::sleep(REDIAL).await,
                outcome => return outcome,
            }
        }
    }

    /// Makes a sandbox a session's own, with what that is given (or nothing, where it is already), and opens the stream to it.
    pub(super) async fn connect(
        self: &Arc<Self>,
        sandbox: SandboxId,
        record: OwnerRecord,
        coming: Coming,
    ) -> Result<Arc<Session>, NodeError> {
        let connecting = self.connect_patiently(sandbox, record, coming);
        let late = || NodeError::Unavailable("its sandbox does not answer".to_owned());
        tokio::time::timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(late()))
    }

    async fn connect_patiently(
        self: &Arc<Self>,
        sandbox: SandboxId,
        record: OwnerRecord,
        coming: Coming,
    ) -> Result<Arc<Session>, NodeError> {
        let driver = &self.driver.0;
        let adopted = matches!(coming, Coming::Back);
        let has_past = matches!(coming, Coming::Back | Coming::Machine(_));
        let failed = |error: DriverError| match error {
            DriverError::Invalid(why) => NodeError::Invalid(why),
            error => NodeError::Unavailable(error.to_string()),
        };
        let stream = match coming {
            Coming::Back => self.dial_patiently(sandbox).await,
            Coming::Fresh(given) | Coming::Machine(given) => {
                let no_random = |error: getrandom::Error| NodeError::Unavailable(error.to_string());
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(no_random)?;
                let mut env = self.spec().env.clone();
                let secrets = given.made(&mut env).map_err(no_random)?;
                let stream = driver.give(sandbox, &Owner { record: record.encode() }, &Activation { env, seed }).await;
                if !secrets.is_empty() && stream.is_ok() {
                    // Before anybody can run anything in it.
                    driver.entrust(sandbox, &secrets).await.map_err(failed)?;
                }
                stream
            }
        };
        let stream = stream.map_err(failed)?;
        let link = Link::open(stream).await.map_err(|error| NodeError::Unavailable(error.to_string()))?;
        let expected = self.inner().boots.get(&sandbox).copied();
        if expected.is_some_and(|expected| expected != link.boot_id()) {
            return Err(NodeError::Unavailable("its sandbox started anew".to_owned()));
        }
        let now = self.now();
        let born = now.saturating_sub(self.age(&record));
        let activity = Activity::new(born, now);
        let tenant = self.inner().payers.get(&sandbox).cloned();
        // Without one it has been ended meanwhile, and counts against nobody.
        let tenant = tenant.unwrap_or_else(|| self.tenants.get(&record.tenant));
        let key = self.key(&record.tenant, &record.identifier);
        let place = Place {
            pool: self.name.clone(),
            key,
            payer: tenant.name.clone(),
            sandbox,
            owner: record.subject,
            created: journal::written(record.created),
        };
        let mut session = Session::new(place, tenant, self.store.clone(), activity, link);
        session.has_secrets = record.has_secrets;
        if let Some(journal) = &session.journal {
            journal.store.opened(&journal.place);
        }
        let session = Arc::new(session);
        if adopted {
            session.forget_charges();
        }
        if has_past {
            let asked = session.link.call(Call::Executions).await;
            // What its agent said of its end is more than that it is gone.
            let said = |error| session.link.reason().map_or(error, |why| NodeError::Unavailable(why.to_owned()));
            let known = match asked.map_err(said)? {
                Ok(Answer::Executions(known)) => known,
                // Its agent does not know the session: it is not the one that did.
                Ok(_) => return Err(NodeError::Unavailable("its agent answered something else".to_owned())),
                Err(refusal) => return Err(NodeError::Unavailable(refusal.to_string())),
            };
            if let Some(store) = self.store.as_ref().filter(|_| adopted) {
                let unfinished = store.unfinished(sandbox).await;
                let unknown = unfinished.iter().filter(|row| known.iter().all(|(key, _)| *key != row.id.0));
                for row in unknown {
                    let identifier = session.key.identifier.clone();
                    session.report(journal::never_begun(row.id, identifier, self.spec().output_limit));
                }
            }
            for (key, _) in known {
                session.adopt(self, ExecutionId(key)).await?;
            }
        }
        crate::identity::give(self, &session).await?;
        let (pool, closed, weak) = (Arc::clone(self), session.link.closed_token(), Arc::downgrade(&session));
        tokio::spawn(async move {
            closed.cancelled().await;
            let said = weak.upgrade().and_then(|session| session.link.ended());
            // Nothing, if the session was ended before: then this is the echo.
            match said {
                Some((_, true)) if pool.spec().container.as_ref().is_some_and(|one| one.ends_with_program) => {
                    tracing::info!(pool = %pool.name, %sandbox, "a session ends with its program");
                    pool.end(sandbox, Ended::Program);
                }
                Some((why, _)) => pool.lose(sandbox, Loss::StoppedAnswering, &why),
                None => pool.lose(sandbox, Loss::StoppedAnswering, "its sandbox stopped answering"),
            }
        });
        Ok(session)
    }
}
