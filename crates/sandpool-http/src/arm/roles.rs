//! Role assignments of a pool (`Microsoft.Authorization/roleAssignments`). Tools assign a role to whoever made a pool, look whether that is
//! so, and take it back. They are kept with the pool, as its annotations, and grant nothing: who may do what is said by tokens.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use sandpool_objects::{Kept, PoolObject};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Call, Group, invalid, resource};
use crate::problem::Problem;

/// Before an assignment's name, in the annotation that it is.
const NOTE: &str = "azure/roleAssignments/";

/// The roles that there are for pools: executor, contributor, reader (Azure's built-in roles).
const ROLES: [&str; 3] = [
    "0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0",
    "b24988ac-6180-42a0-ab88-20f7382dd24c",
    "acdd72a7-3385-48ef-bd42-f606fba81ae7",
];

/// Said with each of them.
const GRANTS: &str = "Kept, and grants nothing: who may do what in this pool is said by tokens and API keys.";

/// What is kept of one.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Assignment {
    role_definition_id: String,
    principal_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    principal_type: Option<String>,
}

fn named(object: &PoolObject) -> impl Iterator<Item = (&str, Assignment)> {
    object.metadata.annotations.iter().filter_map(|(note, text)| {
        // What somebody else has written there is none.
        Some((note.strip_prefix(NOTE)?, serde_json::from_str(text).ok()?))
    })
}

impl Call<'_> {
    fn shown_assignment(&self, group: &Group, kept: &Kept, name: &str, what: &Assignment) -> Value {
        let scope = self.shown(group, kept)["id"].clone();
        let id =
            format!("{}/providers/Microsoft.Authorization/roleAssignments/{name}", scope.as_str().unwrap_or_default());
        // Plain data: this cannot fail.
        let mut properties = serde_json::to_value(what).unwrap_or_default();
        properties["scope"] = scope;
        properties["description"] = json!(GRANTS);
        json!({ "id": id, "name": name, "type": "Microsoft.Authorization/roleAssignments", "properties": properties })
    }

    /// All of a pool, or with `$filter=principalId eq '...'` those of one principal.
    pub(super) fn assignments(&self, group: &Group, pool: &str, query: &str) -> Result<Response, Problem> {
        let (_, kept) = self.find(group, pool)?;
        let query = percent_encoding::percent_decode_str(query).decode_utf8_lossy().replace('+', " ");
        let of = query.split("principalId eq '").nth(1).and_then(|rest| rest.split('\'').next());
        let meant =
            named(&kept.object).filter(|(_, one)| of.is_none_or(|of| one.principal_id.eq_ignore_ascii_case(of)));
        let shown: Vec<_> = meant.map(|(name, one)| self.shown_assignment(group, &kept, name, &one)).collect();
        Ok(Json(json!({ "value": shown })).into_response())
    }

    pub(super) fn assignment(&self, group: &Group, pool: &str, name: &str) -> Result<Response, Problem> {
        let (_, kept) = self.find(group, pool)?;
        match named(&kept.object).find(|(known, _)| *known == name) {
            Some((_, one)) => Ok(Json(self.shown_assignment(group, &kept, name, &one)).into_response()),
            None => {
                let text = format!("The role assignment '{name}' is not found.");
                Err(Problem::new(StatusCode::NOT_FOUND, "RoleAssignmentNotFound", text))
            }
        }
    }

    pub(super) async fn assign(
        &self,
        group: &Group,
        pool: &str,
        name: &str,
        body: &Value,
    ) -> Result<Response, Problem> {
        self.operator()?;
        let (_, kept) = self.find(group, pool)?;
        let is_name =
            |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !is_name(name) {
            return Err(invalid(
                "name",
                "The name of a role assignment has letters, digits and hyphens, as a GUID.".to_owned(),
            ));
        }
        let said = |field: &str| body["properties"][field].as_str().filter(|text| text.len() <= 512).map(str::to_owned);
        let missing = |field: &str| {
            invalid(&format!("properties.{field}"), format!("properties.{field}: is missing, or too long."))
        };
        let role = said("roleDefinitionId").ok_or_else(|| missing("roleDefinitionId"))?;
        let principal = said("principalId").filter(|id| is_name(id)).ok_or_else(|| missing("principalId"))?;
        if !ROLES.iter().any(|known| role.rsplit('/').next().is_some_and(|id| id.eq_ignore_ascii_case(known))) {
            let text = format!(
                "There is no role {role} for session pools: executor, contributor and reader are what there is."
            );
            return Err(Problem::new(StatusCode::BAD_REQUEST, "RoleDefinitionDoesNotExist", text));
        }
        let one =
            Assignment { role_definition_id: role, principal_id: principal, principal_type: said("principalType") };
        for (known, other) in named(&kept.object) {
            let is_same = other.role_definition_id == one.role_definition_id && other.principal_id == one.principal_id;
            match (known == name, is_same) {
                (true, true) => return Ok(Json(self.shown_assignment(group, &kept, name, &other)).into_response()),
                (true, false) => {
                    let text = "A role assignment keeps its role and its principal: take it back first.";
                    return Err(Problem::new(StatusCode::CONFLICT, "RoleAssignmentUpdateNotPermitted", text));
                }
                (false, true) => {
                    let text = format!("The role assignment already exists. Its name is {known}.");
                    return Err(Problem::new(StatusCode::CONFLICT, "RoleAssignmentExists", text));
                }
                (false, false) => {}
            }
        }
        let mut object = kept.object.clone();
        let text = serde_json::to_string(&one).unwrap_or_default();
        object.metadata.annotations.insert(format!("{NOTE}{name}"), text);
        let kept = self.noted(object).await?;
        Ok((StatusCode::CREATED, Json(self.shown_assignment(group, &kept, name, &one))).into_response())
    }

    pub(super) async fn take_back(&self, group: &Group, pool: &str, name: &str) -> Result<Response, Problem> {
        self.operator()?;
        let Ok((_, kept)) = self.find(group, pool) else { return Ok(StatusCode::NO_CONTENT.into_response()) };
        let found = named(&kept.object).find(|(known, _)| *known == name).map(|(_, one)| one);
        let Some(one) = found else { return Ok(StatusCode::NO_CONTENT.into_response()) };
        let shown = self.shown_assignment(group, &kept, name, &one);
        let mut object = kept.object.clone();
        object.metadata.annotations.remove(&format!("{NOTE}{name}"));
        self.noted(object).await?;
        Ok(Json(shown).into_response())
    }

    /// The pool with other annotations.
    async fn noted(&self, object: PoolObject) -> Result<Kept, Problem> {
        let applied = self.app.pools.apply(object, false).await.map_err(resource::refused)?;
        self.app.did_apply(&self.principal, &applied);
        Ok(applied.kept().clone())
    }
}
