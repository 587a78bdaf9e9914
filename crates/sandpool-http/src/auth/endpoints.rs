//! Where clients get tokens: the forms of Microsoft's identity endpoints that unmodified libraries know.
//!
//! ```text
//! /msi/token                            managed identity, App Service form: a secret in a header
//! /metadata/identity/oauth2/token       managed identity, virtual machine form: no secret, so only when allowed
//! /{tenant}/oauth2/v2.0/token           service principal: an API key's name and the key
//! /.well-known/...                      our issuer and its public keys
//! ```

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Form, Path, Query, State};
use axum::http::header::{CACHE_CONTROL, HOST, PRAGMA};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::{AUDIENCES, Auth, Mint, Principal, Role, now, verified};

/// The largest form, in bytes.
const MAX_FORM: usize = 16 * 1024;

/// The routes. None needs a token: they are where tokens come from.
pub fn routes(auth: Arc<Auth>) -> Router {
    let documents = Router::new()
        .route("/.well-known/openid-configuration", get(own_document))
        .route("/.well-known/jwks.json", get(async |State(auth): State<Arc<Auth>>| Json(auth.jwks())))
        .route("/{tenant}/.well-known/openid-configuration", get(tenant_document))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(tenant_document));
    documents
        .route("/msi/token", get(app_service).post(app_service))
        .route("/metadata/identity/oauth2/token", get(virtual_machine))
        .route("/{tenant}/oauth2/v2.0/token", post(service_principal))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .with_state(auth)
}

fn document(issuer: &str, base: &str, token_endpoint: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{base}/.well-known/jwks.json"),
        "token_endpoint": token_endpoint,
        "authorization_endpoint": token_endpoint,
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
    })
}

/// Our address as the client knows it. What a client says of the host comes back to that client only.
fn base(headers: &HeaderMap, scheme: &str) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    format!("{scheme}://{host}")
}

async fn own_document(State(auth): State<Arc<Auth>>, headers: HeaderMap) -> Json<Value> {
    let base = base(&headers, "http");
    Json(document(auth.issuer(), &base, &format!("{base}/sandpool/oauth2/v2.0/token")))
}

/// Libraries take a tenant's document over https only.
async fn tenant_document(State(auth): State<Arc<Auth>>, Path(tenant): Path<String>, headers: HeaderMap) -> Json<Value> {
    let base = base(&headers, "https");
    Json(document(auth.issuer(), &base, &format!("{base}/{tenant}/oauth2/v2.0/token")))
}

#[derive(Deserialize)]
struct Asked {
    resource: Option<String>,
    client_id: Option<String>,
}

fn refused(status: StatusCode, error: &str, text: &str) -> Response {
    let body = json!({ "error": error, "error_description": text, "statusCode": status.as_u16(), "message": text });
    (status, Json(body)).into_response()
}

/// The audience that a resource or scope means.
fn known_audience(resource: &str) -> Option<&'static str> {
    let resource = resource.strip_suffix("/.default").unwrap_or(resource).trim_end_matches('/');
    AUDIENCES.into_iter().find(|audience| *audience == resource)
}

/// Whether two secrets are the same, in a time that does not tell how much of them is.
fn same(given: Option<&axum::http::HeaderValue>, secret: &str) -> bool {
    given.is_some_and(|given| bool::from(given.as_bytes().ct_eq(secret.as_bytes())))
}

async fn app_service(State(auth): State<Arc<Auth>>, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    let secret = &auth.config.identity_header;
    let given = headers.get("x-identity-header").or_else(|| headers.get("secret"));
    if !same(given, secret) {
        let text =
            "the header X-IDENTITY-HEADER is missing or wrong: set IDENTITY_HEADER to what `sandpool env` prints";
        return refused(StatusCode::UNAUTHORIZED, "unauthorized", text);
    }
    managed_identity(&auth, &asked)
}

async fn virtual_machine(State(auth): State<Arc<Auth>>, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    if !auth.config.open_metadata {
        let text = "this form of managed identity has no secret, so it is off; use IDENTITY_ENDPOINT and \
                    IDENTITY_HEADER as `sandpool env` prints them, or set auth.openMetadata";
        return refused(StatusCode::FORBIDDEN, "forbidden", text);
    }
    // What a browser or a tricked server cannot send.
    if !headers.get("metadata").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
        || headers.contains_key("x-forwarded-for")
    {
        return refused(StatusCode::BAD_REQUEST, "invalid_request", "the header `Metadata: true` is missing");
    }
    managed_identity(&auth, &asked)
}

fn managed_identity(auth: &Auth, asked: &Asked) -> Response {
    let Some(resource) = asked.resource.as_deref() else {
        return refused(StatusCode::BAD_REQUEST, "invalid_request", "the parameter `resource` is missing");
    };
    let Some(audience) = known_audience(resource) else {
        let text = format!("the resource is unknown here; ask for one of: {}", AUDIENCES.join(", "));
        return refused(StatusCode::BAD_REQUEST, "invalid_resource", &text);
    };
    let request = Mint::new("managed-identity", Role::Executor);
    let client = asked.client_id.as_deref().unwrap_or("managed-identity");
    answer(auth, &request, |minted| {
        json!({
            "access_token": minted.token,
            "expires_on": minted.expires_at.to_string(),
            "expires_in": minted.expires_at.saturating_sub(now()).to_string(),
            "resource": audience,
            "token_type": "Bearer",
            "client_id": client,
        })
    })
}

fn answer(auth: &Auth, request: &Mint, body: impl FnOnce(&super::Minted) -> Value) -> Response {
    match auth.mint(request) {
        Ok(minted) => ([(CACHE_CONTROL, "no-store"), (PRAGMA, "no-cache")], Json(body(&minted))).into_response(),
        Err(error) => {
            tracing::error!("a token could not be made: {error}");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "the token could not be made")
        }
    }
}

#[derive(Deserialize)]
struct Grant {
    grant_type: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
    scope: Option<String>,
}

async fn service_principal(
    State(auth): State<Arc<Auth>>,
    Path(_tenant): Path<String>,
    Form(grant): Form<Grant>,
) -> Response {
    if grant.grant_type.as_deref() != Some("client_credentials") {
        let text = "only the grant type client_credentials is known here";
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type", text);
    }
    let scopes = grant.scope.as_deref().unwrap_or_default();
    if !scopes.split(' ').any(|scope| known_audience(scope).is_some()) {
        let text = format!("the scope is unknown here; ask for one of: {}/.default", AUDIENCES.join("/.default, "));
        return refused(StatusCode::BAD_REQUEST, "invalid_scope", &text);
    }
    let id = grant.client_id.unwrap_or_default();
    let secret = grant.client_secret.unwrap_or_default();
    let Some(Principal { subject, role, pools, session, scopes, tenant }) =
        auth.api_key(&verified::digest(&secret)).filter(|key| key.subject == id)
    else {
        let text = "the client id and secret are not the name and the key of an API key in the settings";
        return refused(StatusCode::UNAUTHORIZED, "invalid_client", text);
    };
    answer(&auth, &Mint { subject, role, pools, session, scopes, tenant, ttl: None }, |minted| {
        let lasts = minted.expires_at.saturating_sub(now());
        json!({ "token_type": "Bearer", "expires_in": lasts, "ext_expires_in": lasts, "access_token": minted.token })
    })
}
