//! What is still going on. An operation is kept nowhere: its name says what was asked, and how it goes is seen from the pool.

use sandpool_core::ids::PoolName;
use sandpool_objects::{Kept, Pull};

use super::path::Group;
use crate::app::App;
use crate::objects::trouble;

/// How it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    InProgress,
    Succeeded,
    Failed(String),
}

impl State {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Failed(_) => "Failed",
        }
    }
}

/// How a pool's latest change goes: it is through when the reservoir has been full once.
pub(super) fn state_of(app: &App, kept: &Kept) -> State {
    let Ok(name) = PoolName::parse(&kept.object.metadata.name) else { return State::InProgress };
    let status = app.pools.status(&name).ok();
    if app.pools.is_settled(&name, kept.generation, status.as_ref().is_some_and(|status| status.is_full)) {
        return State::Succeeded;
    }
    if matches!(app.pools.pulled(&name), Some(Pull::Coming(..))) {
        return State::InProgress;
    }
    match trouble(kept, status.as_ref()) {
        Some(why) => State::Failed(why),
        None => State::InProgress,
    }
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    is_removal: bool,
    pub(super) pool: PoolName,
    /// Tells it from others of its name.
    uid: u64,
    generation: u64,
    pub(super) group: Group,
}

impl Operation {
    fn new(kept: &Kept, group: &Group, is_removal: bool) -> Option<Self> {
        let pool = PoolName::parse(&kept.object.metadata.name).ok()?;
        Some(Self { is_removal, pool, uid: kept.uid, generation: kept.generation, group: group.clone() })
    }

    pub(super) fn change(kept: &Kept, group: &Group) -> Option<Self> {
        Self::new(kept, group, false)
    }

    pub(super) fn removal(kept: &Kept, group: &Group) -> Option<Self> {
        Self::new(kept, group, true)
    }

    fn id(&self) -> String {
        let Self { is_removal, pool, uid, generation, group } = self;
        let kind = if *is_removal { "remove" } else { "change" };
        let place = group.name.as_deref().unwrap_or_default();
        hex::encode(format!("{kind}\n{pool}\n{uid}\n{generation}\n{place}\n{}", group.subscription))
    }

    /// The path where it is found.
    pub(super) fn path(&self, kind: &str) -> String {
        let subscription = percent_encoding::utf8_percent_encode(&self.group.subscription, crate::app::SEGMENT);
        format!("/subscriptions/{subscription}/providers/Microsoft.App/locations/local/{kind}/{}", self.id())
    }

    pub(super) fn parse(id: &str) -> Option<Self> {
        let text = String::from_utf8(hex::decode(id).ok()?).ok()?;
        let words: Vec<&str> = text.splitn(6, '\n').collect();
        let [kind, pool, uid, generation, place, subscription] = words[..] else { return None };
        Some(Self {
            is_removal: kind == "remove",
            pool: PoolName::parse(pool).ok()?,
            uid: uid.parse().ok()?,
            generation: generation.parse().ok()?,
            group: Group { subscription: subscription.to_owned(), name: Some(place.to_owned()) },
        })
    }

    /// How it goes, and the pool as it is now.
    pub(super) fn look(&self, app: &App) -> (State, Option<Kept>) {
        let is_it = |kept: &Kept| kept.uid == self.uid;
        let kept = app.pools.get(&self.pool).filter(is_it);
        match (self.is_removal, kept) {
            (true, None) => (State::Succeeded, None),
            (true, Some(_)) => (State::InProgress, None),
            (false, None) => (State::Failed("The pool is not there any more.".to_owned()), None),
            // Later changes have taken its place.
            (false, Some(kept)) if kept.generation > self.generation => (State::Succeeded, Some(kept)),
            (false, Some(kept)) => (state_of(app, &kept), Some(kept)),
        }
    }
}
