//! Azure's control plane for session pools (`Microsoft.App/sessionPools`): one more face of the pools as objects.
//!
//! ```text
//! path        which resource a path means          resource   an object as that resource, and back
//! operation   what is still going on: no state of its own, an operation's name says what to look at
//! roles       role assignments of a pool: kept with it, and granting nothing
//! ```
//!
//! A name means one pool here, whatever subscription and group stand before it. A pool that was made in one group is not there in
//! others; pools that were not made through this face are in every group. Reading needs the role that reads pools, changing an operator.

mod operation;
mod path;
mod resource;
mod roles;

use axum::Json;
use axum::body::Body;
use axum::http::header::{HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use sandpool_core::ids::PoolName;
use sandpool_objects::{Applied, Kept};
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::{Principal, Role};
use crate::objects::MAX_OBJECT;
use crate::problem::Problem;
use operation::{Operation, State};
pub(crate) use path::Target;
use path::{Group, What};

/// What a client that waits asks next.
const ASYNC: HeaderName = HeaderName::from_static("azure-asyncoperation");

/// The pause that waiting clients are told.
const PAUSE: HeaderValue = HeaderValue::from_static("1");

/// How long a removal is waited for before it is told that it goes on.
const REMOVED: std::time::Duration = std::time::Duration::from_secs(2);

/// One admitted request.
struct Call<'a> {
    app: &'a App,
    principal: Principal,
    /// `http://HOST`, as the caller wrote it.
    origin: String,
    version: String,
}

/// Answers a request for the control plane.
pub(crate) async fn answer(
    app: &App,
    target: Target,
    parts: &Parts,
    origin: String,
    body: &mut Body,
) -> Result<Response, Problem> {
    let principal = app.auth.verify(&parts.headers).await?;
    let query = parts.uri.query().unwrap_or_default();
    let version = query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.eq_ignore_ascii_case("api-version").then(|| value.to_owned())
    });
    let call = Call { app, principal, origin, version: version.unwrap_or_default() };
    let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
    match (target.what, method) {
        (What::Provider, Method::GET | Method::POST) => Ok(Json(provider(&target.group)).into_response()),
        (What::List, Method::GET) => call.list(&target.group),
        (What::Pool(name), Method::GET) => call.get(&target.group, &name),
        (What::Pool(name), Method::PUT) => call.put(&target.group, &name, read(body).await?).await,
        (What::Pool(name), Method::PATCH) => call.patch(&target.group, &name, read(body).await?).await,
        (What::Pool(name), Method::DELETE) => call.delete(&target.group, &name).await,
        (What::Credentials { pool, rotate }, Method::POST) => call.credentials(&target.group, &pool, rotate),
        (What::Operation { id, results }, Method::GET) => call.operation(&id, results),
        (What::RoleAssignments { pool, name: None }, Method::GET) => call.assignments(&target.group, &pool, query),
        (What::RoleAssignments { pool, name: Some(name) }, Method::GET) => call.assignment(&target.group, &pool, &name),
        (What::RoleAssignments { pool, name: Some(name) }, Method::PUT) => {
            call.assign(&target.group, &pool, &name, &read(body).await?).await
        }
        (What::RoleAssignments { pool, name: Some(name) }, Method::DELETE) => {
            call.take_back(&target.group, &pool, &name).await
        }
        (_, method) => {
            let text = format!("This resource does not take {method}.");
            Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text))
        }
    }
}

/// A body, which is a JSON object.
async fn read(body: &mut Body) -> Result<Value, Problem> {
    let taken = std::mem::take(body);
    let bytes = axum::body::to_bytes(taken, MAX_OBJECT).await;
    let bytes = bytes.map_err(|_| {
        let text = format!("The body did not come, or is longer than {MAX_OBJECT} bytes.");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", text)
    })?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|error| invalid("body", format!("The body is not JSON: {error}.")))?;
    if value.is_object() { Ok(value) } else { Err(invalid("body", "The body is no JSON object.".to_owned())) }
}

fn invalid(target: &str, text: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "InvalidRequestContent", text).about(target)
}

/// The provider is registered: clients ask before they make something.
fn provider(group: &Group) -> Value {
    json!({
        "id": format!("/subscriptions/{}/providers/Microsoft.App", group.subscription),
        "namespace": "Microsoft.App",
        "registrationState": "Registered",
        "resourceTypes": [{ "resourceType": "sessionPools", "locations": [], "apiVersions": resource::VERSIONS }],
    })
}

impl Call<'_> {
    fn missing(&self, group: &Group, name: &str) -> Problem {
        let place = group.name.as_deref().unwrap_or_default();
        let text =
            format!("The resource 'Microsoft.App/sessionPools/{name}' under resource group '{place}' was not found.");
        Problem::new(StatusCode::NOT_FOUND, "ResourceNotFound", text)
    }

    /// A pool that this caller may look at, in this group.
    fn find(&self, group: &Group, name: &str) -> Result<(PoolName, Kept), Problem> {
        let missing = || self.missing(group, name);
        let pool = PoolName::parse(name).map_err(|_| missing())?;
        self.principal.may(Role::Reader, &pool, None)?;
        let kept = self.app.pools.get(&pool).filter(|kept| group.has(&kept.object)).ok_or_else(missing)?;
        Ok((pool, kept))
    }

    /// What only an operator may.
    fn operator(&self) -> Result<(), Problem> {
        if self.principal.is_operator() {
            return Ok(());
        }
        let text = "Pools are changed by an operator: an admin of the tenant default (sandpool token --role admin).";
        Err(Problem::new(StatusCode::FORBIDDEN, "AuthorizationFailed", text))
    }

    fn shown(&self, group: &Group, kept: &Kept) -> Value {
        let state = operation::state_of(self.app, kept);
        resource::write(kept, group, &self.origin, &self.version, &state)
    }

    fn list(&self, group: &Group) -> Result<Response, Problem> {
        let may_see = |kept: &Kept| {
            PoolName::parse(&kept.object.metadata.name)
                .is_ok_and(|name| self.principal.may(Role::Reader, &name, None).is_ok())
        };
        let pools = self.app.pools.all();
        let seen = pools.iter().filter(|kept| group.has(&kept.object) && may_see(kept));
        Ok(Json(json!({ "value": seen.map(|kept| self.shown(group, kept)).collect::<Vec<_>>() })).into_response())
    }

    fn get(&self, group: &Group, name: &str) -> Result<Response, Problem> {
        let (_, kept) = self.find(group, name)?;
        Ok(Json(self.shown(group, &kept)).into_response())
    }

    /// Makes or replaces a pool. What this resource cannot say of a pool that is there (its memory, its variables) stays.
    async fn put(&self, group: &Group, name: &str, body: Value) -> Result<Response, Problem> {
        self.operator()?;
        let pool =
            PoolName::parse(name).map_err(|why| invalid("name", format!("The name is not one of a pool: {why}.")))?;
        let before = self.app.pools.get(&pool);
        if before.as_ref().is_some_and(|kept| !group.has(&kept.object)) {
            let text = format!("There is a pool {name} in another resource group, and names of pools are alone here.");
            return Err(Problem::new(StatusCode::CONFLICT, "SessionPoolConflict", text));
        }
        let object = resource::read(&resource::canonical(body), group, name, before.as_ref())?;
        self.apply(group, object, false).await
    }

    async fn patch(&self, group: &Group, name: &str, body: Value) -> Result<Response, Problem> {
        self.operator()?;
        let (_, kept) = self.find(group, name)?;
        let mut whole = self.shown(group, &kept);
        resource::merge(&mut whole, resource::canonical(body));
        let object = resource::read(&whole, group, name, Some(&kept))?;
        self.apply(group, object, true).await
    }

    async fn apply(
        &self,
        group: &Group,
        object: sandpool_objects::PoolObject,
        is_patch: bool,
    ) -> Result<Response, Problem> {
        let applied = self.app.pools.apply(object, false).await.map_err(resource::refused)?;
        self.app.did_apply(&self.principal, &applied);
        let kept = applied.kept();
        let status = match (&applied, is_patch) {
            (_, true) => StatusCode::ACCEPTED,
            (Applied::Created(_), false) => StatusCode::CREATED,
            (Applied::Changed(_) | Applied::Unchanged(_), false) => StatusCode::OK,
        };
        let mut response = (status, Json(self.shown(group, kept))).into_response();
        if let Some(operation) = Operation::change(kept, group) {
            self.goes_on(&mut response, &operation, is_patch);
        }
        Ok(response)
    }

    /// Says where to look for how it goes on.
    fn goes_on(&self, response: &mut Response, operation: &Operation, has_location: bool) {
        let version = if self.version.is_empty() { resource::NEWEST } else { &self.version };
        let address = |kind: &str| {
            let path = operation.path(kind);
            HeaderValue::from_str(&format!("{}{path}?api-version={version}", self.origin))
        };
        let headers = response.headers_mut();
        if let Ok(address) = address("operationStatuses") {
            headers.insert(ASYNC, address);
        }
        if has_location && let Ok(address) = address("operationResults") {
            headers.insert(LOCATION, address);
        }
        headers.insert(RETRY_AFTER, PAUSE);
    }

    async fn delete(&self, group: &Group, name: &str) -> Result<Response, Problem> {
        self.operator()?;
        let Ok((pool, kept)) = self.find(group, name) else { return Ok(StatusCode::NO_CONTENT.into_response()) };
        let operation = Operation::removal(&kept, group);
        let (app, who) = (self.app.clone(), self.principal.clone());
        let mut removal = tokio::spawn(async move { crate::objects::remove(&app, &who, &pool).await });
        // Sessions with it may take their time, and a caller that goes away changes nothing.
        if let Ok(Ok(removed)) = tokio::time::timeout(REMOVED, &mut removal).await {
            removed.map_err(resource::named)?;
        }
        let mut response = StatusCode::ACCEPTED.into_response();
        if let Some(operation) = operation {
            self.goes_on(&mut response, &operation, true);
        }
        Ok(response)
    }

    fn credentials(&self, group: &Group, name: &str, rotate: bool) -> Result<Response, Problem> {
        self.operator()?;
        let (pool, kept) = self.find(group, name)?;
        if !kept.face.is_mcp_enabled {
            let text = "The pool's MCP server is not enabled: mcpServerSettings.isMcpServerEnabled.";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "SessionMCPServerNotEnabled", text));
        }
        let key = crate::objects::mcp_key(self.app, &self.principal, &pool, rotate)?;
        Ok(Json(json!({ "apiKey": key })).into_response())
    }

    fn operation(&self, id: &str, results: bool) -> Result<Response, Problem> {
        let unknown = || Problem::new(StatusCode::NOT_FOUND, "OperationNotFound", "There is no such operation.");
        let operation = Operation::parse(id).ok_or_else(unknown)?;
        self.principal.may(Role::Reader, &operation.pool, None)?;
        let (state, kept) = operation.look(self.app);
        if results {
            let mut response = match (state, kept) {
                (State::InProgress, _) => StatusCode::ACCEPTED.into_response(),
                (State::Failed(why), _) => return Err(Problem::new(StatusCode::CONFLICT, "SessionPoolFailed", why)),
                (State::Succeeded, Some(kept)) => Json(self.shown(&operation.group, &kept)).into_response(),
                (State::Succeeded, None) => StatusCode::NO_CONTENT.into_response(),
            };
            if response.status() == StatusCode::ACCEPTED {
                self.goes_on(&mut response, &operation, true);
            }
            return Ok(response);
        }
        let mut told = json!({ "id": operation.path("operationStatuses"), "name": id, "status": state.word() });
        if let State::Failed(why) = &state {
            told["error"] = json!({ "code": "SessionPoolFailed", "message": why });
        }
        let mut response = Json(told).into_response();
        if state == State::InProgress {
            response.headers_mut().insert(RETRY_AFTER, PAUSE);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests;
