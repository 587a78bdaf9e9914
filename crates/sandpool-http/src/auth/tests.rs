use axum::body::Body;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;

fn config(name: &str) -> AuthConfig {
    AuthConfig {
        keys_dir: std::env::temp_dir().join(format!("sandpool-auth-{name}-{}", std::process::id())),
        issuer: "https://sandpool.local".to_owned(),
        trusted: Vec::new(),
        api_keys: vec![ApiKey {
            name: "ci".to_owned(),
            // Of "a key".
            sha256_hex: hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b"a-key")),
            role: Role::Executor,
            pools: Some(vec!["python".to_owned()]),
            tenant: Default::default(),
        }],
        tenants: Vec::new(),
        identity_header: "secret".to_owned(),
        open_metadata: false,
        token_ttl: Duration::from_secs(600),
    }
}

fn mint(role: Role) -> Mint {
    Mint::new("me", role)
}

fn with(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    headers
}

fn pool(name: &str) -> PoolName {
    PoolName::parse(name).unwrap()
}

#[tokio::test]
async fn our_own_tokens() {
    let config = config("own");
    let auth = Auth::open(config.clone()).unwrap();
    let minted = auth.mint(&mint(Role::Executor)).unwrap();
    let principal = auth.verify(&with(&minted.token)).await.unwrap();
    assert_eq!((principal.subject.as_str(), principal.role), ("me", Role::Executor));
    principal.may(Role::Executor, &pool("python"), None).unwrap();
    let more = principal.may(Role::Admin, &pool("python"), None).unwrap_err();
    assert_eq!(more.status(), StatusCode::FORBIDDEN);
    // Another process rotates the keys; old tokens stay good, and new ones are.
    let other = Auth::open(config.clone()).unwrap();
    other.rotate().unwrap();
    let new = other.mint(&mint(Role::Reader)).unwrap();
    assert_eq!(auth.verify(&with(&new.token)).await.unwrap().role, Role::Reader);
    auth.verify(&with(&minted.token)).await.unwrap();
    std::fs::remove_dir_all(config.keys_dir).unwrap();
}

#[tokio::test]
async fn a_token_that_was_good_is_refused_once_its_key_is_withdrawn() {
    let config = config("withdrawn");
    let auth = Auth::open(config.clone()).unwrap();
    let token = auth.mint(&mint(Role::Executor)).unwrap().token;
    let first = auth.verify(&with(&token)).await.unwrap();
    assert_eq!(auth.verify(&with(&token)).await.unwrap(), first, "known by now");
    // Four keys are kept.
    for _ in 0..4 {
        auth.rotate().unwrap();
    }
    assert_eq!(auth.verify(&with(&token)).await, Err(AuthFailure::UnknownKey));
    std::fs::remove_dir_all(config.keys_dir).unwrap();
}

#[tokio::test]
async fn bad_tokens_say_what_is_wrong() {
    let config = config("bad");
    let auth = Auth::open(config.clone()).unwrap();
    let token = auth.mint(&mint(Role::Admin)).unwrap().token;
    let (head, tail) = token.rsplit_once('.').unwrap();
    let changed = format!("{head}.{}{}", if tail.starts_with('A') { "B" } else { "A" }, &tail[1..]);
    assert_eq!(auth.verify(&HeaderMap::new()).await, Err(AuthFailure::Missing));
    assert_eq!(auth.verify(&with("nonsense")).await, Err(AuthFailure::Malformed));
    assert_eq!(auth.verify(&with(&changed)).await, Err(AuthFailure::Signature));
    let signed = |change: fn(&mut Claims)| {
        let mut claims = Claims {
            iss: "https://sandpool.local".to_owned(),
            sub: "me".to_owned(),
            aud: vec![AUDIENCES[0].to_owned()],
            iat: now(),
            nbf: now(),
            exp: now() + 600,
            roles: vec!["executor".to_owned()],
            pools: None,
            session: None,
            scope: None,
            tenant: None,
        };
        change(&mut claims);
        let keys = auth.keys();
        let header = Header { kid: Some(keys.newest().id.clone()), ..Header::new(Algorithm::ES256) };
        with(&jsonwebtoken::encode(&header, &claims, &keys.newest().encoding).unwrap())
    };
    auth.verify(&signed(|claims| claims.aud = vec![format!("{}/", AUDIENCES[1])])).await.unwrap();
    assert_eq!(auth.verify(&signed(|claims| claims.exp = now() - 600)).await, Err(AuthFailure::Expired));
    assert_eq!(auth.verify(&signed(|claims| claims.nbf = now() + 600)).await, Err(AuthFailure::NotYet));
    let audience = auth.verify(&signed(|claims| claims.aud = vec!["else".to_owned()])).await.unwrap_err();
    assert!(matches!(&audience, AuthFailure::Audience { found, .. } if found.contains("else")), "{audience}");
    let issuer = auth.verify(&signed(|claims| claims.iss = "https://elsewhere".to_owned())).await.unwrap_err();
    assert_eq!(issuer, AuthFailure::Issuer("https://elsewhere".to_owned()));
    let role = auth.verify(&signed(|claims| claims.roles = vec!["nobody".to_owned()])).await.unwrap_err();
    assert_eq!(role.status(), StatusCode::FORBIDDEN);
    std::fs::remove_dir_all(config.keys_dir).unwrap();
}

#[tokio::test]
async fn keys_and_bounds() {
    let config = config("bounds");
    let auth = Auth::open(config.clone()).unwrap();
    let key = auth.verify(&with("a-key")).await.unwrap();
    key.may(Role::Executor, &pool("python"), None).unwrap();
    assert_eq!(key.may(Role::Executor, &pool("shell"), None), Err(AuthFailure::Pool("shell".to_owned())));
    let bound = Mint { session: Some("mine-1".to_owned()), ..mint(Role::Executor) };
    let bound = auth.verify(&with(&auth.mint(&bound).unwrap().token)).await.unwrap();
    let id = |text| Identifier::parse(text).unwrap();
    bound.may(Role::Executor, &pool("python"), Some(&id("mine-1"))).unwrap();
    assert_eq!(bound.may(Role::Executor, &pool("python"), Some(&id("mine-2"))), Err(AuthFailure::Session));
    assert_eq!(bound.may(Role::Reader, &pool("python"), None), Err(AuthFailure::Session));
    let too_long = Mint { ttl: Some(LONGEST_TTL + Duration::from_secs(1)), ..mint(Role::Reader) };
    assert!(matches!(auth.mint(&too_long), Err(AuthError::Ttl(_))));
    std::fs::remove_dir_all(config.keys_dir).unwrap();
}

#[tokio::test]
async fn a_token_belongs_to_the_one_tenant_that_claims_it() {
    let name = |text: &str| TenantName::parse(text).unwrap();
    let own = "https://sandpool.local".to_owned();
    let claim =
        |name: &str, value: &str| TenantClaim { issuer: own.clone(), claim: Some((name.to_owned(), value.to_owned())) };
    let tenants = vec![
        TenantTokens { tenant: name("acme"), claims: vec![claim("sub", "me"), claim("roles", "admin")] },
        TenantTokens { tenant: name("globex"), claims: vec![claim("sub", "other"), claim("sub", "both")] },
        TenantTokens {
            tenant: name("elsewhere"),
            claims: vec![TenantClaim { issuer: "https://x".into(), claim: None }],
        },
    ];
    let mut config = AuthConfig { tenants, ..config("tenants") };
    config.api_keys[0].tenant = name("globex");
    let auth = Auth::open(config.clone()).unwrap();
    let of = async |subject: &str, role: Role, tenant: TenantName| {
        let mint = Mint { subject: subject.to_owned(), tenant, ..mint(role) };
        auth.verify(&with(&auth.mint(&mint).unwrap().token)).await
    };
    let tenant = |outcome: Result<Principal, AuthFailure>| outcome.unwrap().tenant;
    assert_eq!(tenant(of("me", Role::Executor, TenantName::default()).await), name("acme"));
    assert_eq!(tenant(of("nobody", Role::Executor, TenantName::default()).await), TenantName::default());
    assert_eq!(tenant(of("me", Role::Executor, name("elsewhere")).await), name("elsewhere"), "it says so itself");
    assert_eq!(tenant(auth.verify(&with("a-key")).await), name("globex"));
    let both = of("both", Role::Admin, TenantName::default()).await.unwrap_err();
    assert_eq!((both.status(), both), (StatusCode::FORBIDDEN, AuthFailure::Claimed("acme, globex".to_owned())));
    // An administrator of a tenant is none of the others.
    let admin = of("me", Role::Admin, name("acme")).await.unwrap();
    assert!(!admin.is_operator() && admin.room(Some("globex")).is_err());
    assert_eq!(admin.room(Some("acme")).unwrap(), name("acme"));
    // Once it is not declared any more, its tokens are nobody's.
    let token = auth.mint(&Mint { tenant: name("acme"), ..mint(Role::Executor) }).unwrap().token;
    let later = Auth::open(AuthConfig { tenants: Vec::new(), ..config.clone() }).unwrap();
    assert_eq!(later.verify(&with(&token)).await, Err(AuthFailure::UnknownTenant("acme".to_owned())));
    assert!(later.mint(&Mint { tenant: name("acme"), ..mint(Role::Executor) }).is_err());
    std::fs::remove_dir_all(config.keys_dir).unwrap();
}

#[tokio::test]
async fn identity_endpoints() {
    let config = config("endpoints");
    let auth = Arc::new(Auth::open(config.clone()).unwrap());
    let router = routes(Arc::clone(&auth));
    let ask = async |request: Request<Body>| -> (StatusCode, Value) {
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    };
    let managed = "/msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fdynamicsessions.io";
    let get = |uri: &str| Request::get(uri).header("Metadata", "true");
    let (status, body) = ask(get(managed).header("X-IDENTITY-HEADER", "secret").body(Body::empty()).unwrap()).await;
    assert_eq!((status, &body["resource"]), (StatusCode::OK, &Value::from(AUDIENCES[0])));
    auth.verify(&with(body["access_token"].as_str().unwrap())).await.unwrap();
    let (status, body) = ask(get(managed).header("X-IDENTITY-HEADER", "wrong").body(Body::empty()).unwrap()).await;
    assert_eq!((status, body["statusCode"].as_u64()), (StatusCode::UNAUTHORIZED, Some(401)));
    let metadata = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Facasessions.io";
    assert_eq!(ask(get(metadata).body(Body::empty()).unwrap()).await.0, StatusCode::FORBIDDEN);
    let grant = |secret: &str| {
        let form = format!(
            "grant_type=client_credentials&client_id=ci&client_secret={secret}&scope=https%3A%2F%2Fdynamicsessions.io%2F.default"
        );
        Request::post("/adfs/oauth2/v2.0/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(form))
            .unwrap()
    };
    let (status, body) = ask(grant("a-key")).await;
    assert_eq!(status, StatusCode::OK);
    let principal = auth.verify(&with(body["access_token"].as_str().unwrap())).await.unwrap();
    assert_eq!(principal.pools, Some(vec![pool("python")]));
    assert_eq!(ask(grant("another")).await.0, StatusCode::UNAUTHORIZED);
    let (_, document) = ask(Request::get("/adfs/.well-known/openid-configuration").body(Body::empty()).unwrap()).await;
    assert_eq!(document["token_endpoint"], "https://localhost/adfs/oauth2/v2.0/token");
    std::fs::remove_dir_all(config.keys_dir).unwrap();
}
