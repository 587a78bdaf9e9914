//! Which resource a path means. Words are compared without case; names of resources have none.

use percent_encoding::percent_decode_str;
use sandpool_objects::PoolObject;

use super::resource::{GROUP, SUBSCRIPTION};

/// A subscription, and a group in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) subscription: String,
    /// All groups of it, when there is none.
    pub(crate) name: Option<String>,
}

impl Group {
    /// Whether a pool is in it: one that was made in it, or elsewhere than through this face.
    pub(super) fn has(&self, object: &PoolObject) -> bool {
        let noted = |name: &str| object.metadata.annotations.get(name);
        let is_same = |noted: Option<&String>, own: &str| noted.is_none_or(|noted| noted.eq_ignore_ascii_case(own));
        is_same(noted(SUBSCRIPTION), &self.subscription)
            && self.name.as_ref().is_none_or(|own| is_same(noted(GROUP), own))
    }
}

/// What a path is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Provider,
    List,
    Pool(String),
    Credentials {
        pool: String,
        rotate: bool,
    },
    /// `results`: what came of it, and not how it goes.
    Operation {
        id: String,
        results: bool,
    },
    /// Of a pool: one by its name, or all.
    RoleAssignments {
        pool: String,
        name: Option<String>,
    },
}

/// A path of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) group: Group,
    pub(crate) what: What,
}

impl Target {
    /// Takes a path apart; `None` when it is none of these.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let segments: Vec<String> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(|segment| percent_decode_str(segment).decode_utf8().ok().map(|text| text.into_owned()))
            .collect::<Option<_>>()?;
        let is = |at: usize, word: &str| segments.get(at).is_some_and(|segment| segment.eq_ignore_ascii_case(word));
        let get = |at: usize| segments.get(at).cloned();
        if !is(0, "subscriptions") {
            return None;
        }
        let subscription = get(1)?;
        let (name, at) = if is(2, "resourceGroups") { (Some(get(3)?), 4) } else { (None, 2) };
        let is_grouped = name.is_some();
        let group = Group { subscription, name };
        if !(is(at, "providers") && is(at + 1, "Microsoft.App")) {
            return None;
        }
        let at = at + 2;
        let rest = segments.len() - at;
        let what = match rest {
            0 if !is_grouped => What::Provider,
            1 if !is_grouped && is(at, "register") => What::Provider,
            1 if is(at, "sessionPools") => What::List,
            2 if is_grouped && is(at, "sessionPools") => What::Pool(get(at + 1)?.to_ascii_lowercase()),
            3 if is_grouped && is(at, "sessionPools") => {
                let pool = get(at + 1)?.to_ascii_lowercase();
                if is(at + 2, "fetchMcpServerCredentials") {
                    What::Credentials { pool, rotate: false }
                } else if is(at + 2, "rotateMcpServerCredentials") || is(at + 2, "regenerateCredentials") {
                    What::Credentials { pool, rotate: true }
                } else {
                    return None;
                }
            }
            4 if !is_grouped && is(at, "locations") => {
                let id = get(at + 3)?;
                if is(at + 2, "operationStatuses") {
                    What::Operation { id, results: false }
                } else if is(at + 2, "operationResults") {
                    What::Operation { id, results: true }
                } else {
                    return None;
                }
            }
            5 | 6
                if is_grouped
                    && is(at, "sessionPools")
                    && is(at + 2, "providers")
                    && is(at + 3, "Microsoft.Authorization")
                    && is(at + 4, "roleAssignments") =>
            {
                let pool = get(at + 1)?.to_ascii_lowercase();
                What::RoleAssignments { pool, name: get(at + 5).map(|name| name.to_ascii_lowercase()) }
            }
            _ => return None,
        };
        Some(Self { group, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(path: &str) -> Option<What> {
        Target::parse(path).map(|target| target.what)
    }

    #[test]
    fn resources_are_told_from_what_is_below_a_pool() {
        const POOLS: &str = "/subscriptions/S/resourceGroups/R/providers/Microsoft.App/sessionPools";
        let pool = || Some(What::Pool("calc".to_owned()));
        assert_eq!(what(POOLS), Some(What::List));
        assert_eq!(what("/SUBSCRIPTIONS/S/providers/microsoft.app/sessionpools/"), Some(What::List));
        assert_eq!(what(&format!("{POOLS}/Calc")), pool());
        assert_eq!(what(&format!("{POOLS}/calc/")), pool());
        assert_eq!(
            what(&format!("{POOLS}/calc/fetchMCPServerCredentials")),
            Some(What::Credentials { pool: "calc".to_owned(), rotate: false })
        );
        for other in [
            &format!("{POOLS}/calc/executions"),
            &format!("{POOLS}/calc/files/a"),
            "/subscriptions/S/resourceGroups/R/sessionPools/calc",
            "/pools/calc",
            "/subscriptions/S/providers/Microsoft.App/sessionPools/calc",
            "/subscriptions",
        ] {
            assert_eq!(what(other), None, "{other}");
        }
        let operation = "/subscriptions/S/providers/Microsoft.App/locations/here/operationStatuses/77";
        assert_eq!(what(operation), Some(What::Operation { id: "77".to_owned(), results: false }));
    }
}
