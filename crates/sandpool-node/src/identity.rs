//! What sessions' programs say who they are with: sent into their sandboxes, so that nothing of a sandbox asks who signs.

use std::sync::Arc;

use sandpool_wire::agent::Call;

use crate::api::*;
use crate::pools::PoolState;
use crate::session::Session;

/// Gives a session's program its tokens, before anybody can ask it anything, and new ones for as long as the session lives.
pub(crate) async fn give(pool: &Arc<PoolState>, session: &Arc<Session>) -> Result<(), NodeError> {
    let has_some = pool.spec().container.as_ref().is_some_and(|container| container.main.has_identity);
    let Some(identities) = pool.identities.clone().filter(|_| has_some) else { return Ok(()) };
    let tokens = move |pool: &PoolState, session: &Session| {
        let spec = pool.spec();
        let audiences = spec.container.as_ref().map_or(&[][..], |container| &container.audiences);
        Call::Identify(identities.tokens(&pool.name, &session.key, audiences))
    };
    let heard = session.link.call(tokens(pool, session)).await?;
    heard.map_err(|refusal| NodeError::Unavailable(refusal.to_string()))?;
    let (pool, closed, weak) = (Arc::clone(pool), session.link.closed_token(), Arc::downgrade(session));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = closed.cancelled() => return,
                () = tokio::time::sleep(IDENTITY_RENEWED) => {}
            }
            let Some(session) = weak.upgrade() else { return };
            // An end of the session is told by others.
            let _ = session.link.call(tokens(&pool, &session)).await;
        }
    });
    Ok(())
}
