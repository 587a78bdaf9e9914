//! Scopes of OAuth: a token that names some of ours is good for these only, whatever its role may.

use serde_json::Value;

use super::verify::texts;
use super::{AuthFailure, Principal, Role};

/// What a token can be limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Run code, and all that goes with it: open and end sessions, follow and stop executions.
    Execute,
    /// Read and write files of sessions.
    Files,
    /// Everything.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Execute, Self::Files, Self::Admin];

    /// Its name in tokens and challenges.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Execute => "sessions:execute",
            Self::Files => "sessions:files",
            Self::Admin => "sessions:admin",
        }
    }

    /// The scope of that name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.word() == word)
    }

    /// What it is good for, for a token whose issuer says no roles.
    fn role(self) -> Role {
        if self == Self::Admin { Role::Admin } else { Role::Executor }
    }
}

/// The scopes that a token names (RFC 9068: `scope`, words in one text; Entra's `scp`). `None` when none is ours: other scopes are
/// for somebody else, and say nothing here.
pub(super) fn named(claims: &Value) -> Option<Vec<Scope>> {
    let said = ["scope", "scp"].map(|name| texts(claims.get(name)));
    let words = said.iter().flatten().flat_map(|text| text.split_ascii_whitespace());
    let mut scopes: Vec<_> = words.filter_map(Scope::parse).collect();
    scopes.sort_unstable();
    scopes.dedup();
    (!scopes.is_empty()).then_some(scopes)
}

/// The role of a token that has scopes of ours and no role.
pub(super) fn role(scopes: Option<&[Scope]>) -> Option<Role> {
    scopes?.iter().map(|scope| scope.role()).max()
}

impl Principal {
    /// Whether its token is good for that.
    ///
    /// # Errors
    /// [`AuthFailure::Scope`].
    pub fn allows(&self, scope: Scope) -> Result<(), AuthFailure> {
        let is_allowed = |scopes: &Vec<Scope>| scopes.contains(&scope) || scopes.contains(&Scope::Admin);
        if self.scopes.as_ref().is_none_or(is_allowed) { Ok(()) } else { Err(AuthFailure::Scope(scope)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scopes_are_read_in_all_forms_and_those_of_others_say_nothing() {
        let read = |claims: Value| named(&claims);
        assert_eq!(
            read(json!({ "scope": "openid sessions:files sessions:execute sessions:files" })),
            Some(vec![Scope::Execute, Scope::Files])
        );
        assert_eq!(read(json!({ "scp": "sessions:admin" })), Some(vec![Scope::Admin]));
        assert_eq!(read(json!({ "scp": ["user_impersonation", "sessions:files"] })), Some(vec![Scope::Files]));
        for claims in
            [json!({}), json!({ "scope": "openid profile" }), json!({ "scope": 7 }), json!({ "scope": "sessions:" })]
        {
            assert_eq!(read(claims), None);
        }
    }

    #[test]
    fn a_token_without_roles_may_what_its_scopes_are_for() {
        assert_eq!(role(None), None);
        assert_eq!(role(Some(&[Scope::Files])), Some(Role::Executor));
        assert_eq!(role(Some(&[Scope::Execute, Scope::Admin])), Some(Role::Admin));
    }
}
