use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::http::header::AUTHORIZATION;
use sandpool_driver::GoneReason;
use sandpool_driver::memory::{Boot, Memory, MemoryConfig};
use serde_json::json;

use super::*;
use crate::auth::Role;
use crate::served::{Answer, Served, read};

/// What the tests of text look for everywhere: no metric may have it.
const SESSION: &str = "chat-with-somebody";
const SECRET: &str = "out what-somebody-ran";

/// Samples by their name with its labels, as they are written.
type Samples = BTreeMap<String, f64>;

async fn asked(served: &Served, token: &str, accept: &str) -> Answer {
    let request = Request::builder()
        .uri("/metrics")
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .header(ACCEPT, accept)
        .body(Body::empty())
        .unwrap();
    read(served.send(request).await).await
}

async fn scraped(served: &Served) -> Samples {
    let token = served.token_for(Role::Reader, None, None);
    parsed(asked(served, &token, OPEN_METRICS).await.text())
}

/// Reads OpenMetrics strictly: every sample belongs to a family that was described before it, and none is there twice.
fn parsed(text: &str) -> Samples {
    let mut samples = Samples::new();
    let (mut families, mut kind): (BTreeSet<String>, _) = (BTreeSet::new(), String::new());
    let mut family = String::new();
    let body = text.strip_suffix("# EOF\n").expect("the end");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split_once(' ').unwrap().0.to_owned();
            assert!(families.insert(family.clone()), "{family} is there twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            kind = of.to_owned();
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert!(name == family && name.ends_with(unit), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let bare = name.split('{').next().unwrap();
            let endings: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("{other}"),
            };
            assert!(endings.iter().any(|end| *bare == format!("{family}{end}")), "{line} in {family}");
            assert_eq!(samples.insert(name.to_owned(), value.parse().unwrap()), None, "{name} is there twice");
        }
    }
    samples
}

/// One sample; nothing where there is none yet.
fn of(samples: &Samples, name: &str) -> u64 {
    let value = samples.get(name).copied().unwrap_or_default();
    format!("{value}").parse().unwrap_or_else(|_| panic!("{name} is {value}"))
}

/// Reads again until `name` is `value`: some things are counted just after they were answered.
async fn settles(served: &Served, name: &str, value: u64) -> Samples {
    for _ in 0..200 {
        let samples = scraped(served).await;
        if of(&samples, name) == value {
            return samples;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} is {} and not {value}", of(&scraped(served).await, name));
}

async fn run(served: &Served, session: &str, code: &str) -> Answer {
    let path = format!("/pools/python/sessions/{session}/executions");
    served.call("POST", &path, json!({ "code": code }).to_string()).await
}

#[tokio::test]
async fn what_is_counted_of_sessions_and_executions_is_what_happened() {
    let served = Served::start().await;
    let before = settles(&served, "sandpool_pool_ready_sandboxes{pool=\"python\"}", 1).await;
    assert_eq!(of(&before, "sandpool_pool_max_sessions{pool=\"python\"}"), 3);
    assert_eq!(
        before["sandpool_pool_sessions_lost_total{pool=\"python\",reason=\"died\"}"], 0.0,
        "it is there from the start"
    );
    for session in ["one-session", "two-sessions"] {
        assert_eq!(run(&served, session, "out hi").await.status, 200);
    }
    run(&served, "one-session", "raise ValueError: bad").await;
    let counts = settles(&served, "sandpool_pool_executions_total{pool=\"python\",outcome=\"raised\"}", 1).await;
    for (name, value) in [
        ("sandpool_pool_executions_total{pool=\"python\",outcome=\"succeeded\"}", 2),
        ("sandpool_pool_execution_seconds_count{pool=\"python\"}", 3),
        ("sandpool_pool_execution_seconds_bucket{le=\"+Inf\",pool=\"python\"}", 3),
        ("sandpool_pool_queue_wait_seconds_count{pool=\"python\"}", 3),
        ("sandpool_pool_sessions_opened_total{pool=\"python\"}", 2),
        ("sandpool_pool_allocation_seconds_count{pool=\"python\"}", 2),
        ("sandpool_pool_sessions{pool=\"python\"}", 2),
        ("azure_pool_executing_pod_count{pool=\"python\"}", 2),
        ("sandpool_pool_executions_total{pool=\"node\",outcome=\"succeeded\"}", 0),
        ("sandpool_driver_calls_total{call=\"give\",outcome=\"done\"}", 2),
        ("sandpool_driver_call_seconds_count{call=\"give\"}", 2),
    ] {
        assert_eq!(of(&counts, name), value, "{name}");
    }
    // One ends as asked, the other with its sandbox.
    assert_eq!(served.call("DELETE", "/pools/python/sessions/one-session", "").await.status, 204);
    let sandbox = served.call("GET", "/pools/python/sessions/two-sessions", "").await.json()["sandbox"].clone();
    let killed = served.memory.sandboxes().into_iter().find(|one| json!(one.id.to_string()) == sandbox).unwrap();
    served.memory.kill(killed.id, GoneReason::OutOfMemory);
    let after = settles(&served, "sandpool_pool_sessions{pool=\"python\"}", 0).await;
    assert_eq!(of(&after, "sandpool_pool_sessions_ended_total{pool=\"python\",reason=\"asked\"}"), 1);
    let lost = |(name, count): (&String, &f64)| {
        name.starts_with("sandpool_pool_sessions_lost_total{pool=\"python\"").then_some(*count)
    };
    assert_eq!(
        after.iter().filter_map(lost).sum::<f64>(),
        1.0,
        "once, whichever is heard first: its end or its silence"
    );
    assert_eq!(run(&served, "two-sessions", "out hi").await.status, 410);
    let told = scraped(&served).await;
    assert_eq!(of(&told, "sandpool_pool_refusals_total{pool=\"python\",reason=\"sessionLost\"}"), 1);
    assert_eq!(of(&told, "sandpool_http_refusals_total{class=\"4xx\",code=\"SessionLost\"}"), 1);
}

#[tokio::test]
async fn what_is_counted_of_requests_is_what_was_answered() {
    let served = Served::start().await;
    let azure =
        "/subscriptions/s/resourceGroups/r/sessionPools/python/files?identifier=chat-17&api-version=2025-10-02-preview";
    served.call("GET", "/healthz", "").await;
    served.call("GET", "/pools", "").await;
    served.call("GET", "/pools/nothing", "").await;
    served.call("GET", azure, "").await;
    served.as_("wrong", "GET", "/pools", "").await;
    let counts = scraped(&served).await;
    for (name, value) in [
        ("sandpool_http_requests_total{dialect=\"server\",status=\"200\"}", 1),
        ("sandpool_http_requests_total{dialect=\"native\",status=\"200\"}", 1),
        ("sandpool_http_requests_total{dialect=\"native\",status=\"404\"}", 1),
        ("sandpool_http_requests_total{dialect=\"native\",status=\"401\"}", 1),
        ("sandpool_http_requests_total{dialect=\"azure\",status=\"200\"}", 1),
        ("sandpool_http_request_seconds_count{dialect=\"native\"}", 3),
        ("sandpool_http_refusals_total{class=\"4xx\",code=\"SessionPoolNotFound\"}", 1),
        ("sandpool_http_refusals_total{class=\"4xx\",code=\"Unauthorized\"}", 1),
        ("sandpool_http_requests_underway{dialect=\"server\"}", 1),
        ("sandpool_http_requests_underway{dialect=\"native\"}", 0),
    ] {
        assert_eq!(of(&counts, name), value, "{name}");
    }
    assert!(counts.keys().any(|name| name == "sandpool_build_info{version=\"0.0.0\"}"), "{:?}", counts.keys());
    assert!(!counts.contains_key("sandpool_store_trouble"), "there is no store");
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted() {
    let served = Served::start().await;
    let asking = run(&served, "one-session", "sleep 60000");
    assert!(tokio::time::timeout(Duration::from_millis(200), asking).await.is_err());
    let counts = scraped(&served).await;
    assert_eq!(of(&counts, "sandpool_http_requests_total{dialect=\"native\",status=\"499\"}"), 1);
    assert_eq!(of(&counts, "sandpool_http_requests_underway{dialect=\"native\"}"), 0);
    assert_eq!(of(&counts, "sandpool_pool_busy_sessions{pool=\"python\"}"), 1, "what it began goes on");
}

#[test]
fn every_path_is_in_a_dialect() {
    for (path, dialect) in [
        ("/readyz", Dialect::Server),
        ("/pools", Dialect::Native),
        ("/pools/p", Dialect::Native),
        ("/pools/p/object", Dialect::Native),
        ("/pools/p/sessions/s/files/mcp", Dialect::Native),
        ("/pools/p/mcp/credentials", Dialect::Native),
        ("/pools/p/mcp", Dialect::Mcp),
        ("/pools/p/servers/time/mcp", Dialect::Mcp),
        ("/mcp", Dialect::Mcp),
        ("/pools/p/executions", Dialect::Azure),
        ("/pools/p/files/mcp/content", Dialect::Azure),
        ("/subscriptions/s/resourceGroups/r/sessionPools/p/code/execute", Dialect::Azure),
        ("/subscriptions/s/resourceGroups/r/sessionPools/p/mcp", Dialect::Mcp),
        ("/subscriptions/s/resourceGroups/r/providers/Microsoft.App/sessionPools/p", Dialect::Arm),
        ("/msi/token", Dialect::Identity),
        ("/common/oauth2/v2.0/token", Dialect::Identity),
        ("/.well-known/jwks.json", Dialect::Identity),
        ("/favicon.ico", Dialect::Azure),
        ("", Dialect::Azure),
    ] {
        assert_eq!(Dialect::of(path), dialect, "{path}");
    }
}

#[tokio::test]
async fn what_a_tenant_uses_stands_beside_its_quota() {
    let served = Served::start().await;
    let small = served.token_of("small", Role::Executor);
    assert_eq!(served.as_(&small, "PUT", "/pools/python/sessions/its-one-session", "").await.status, 201);
    assert_eq!(served.as_(&small, "PUT", "/pools/python/sessions/another", "").await.status, 429);
    let counts = scraped(&served).await;
    let tenants: Vec<_> = counts.iter().filter(|(name, _)| name.contains("tenant=")).collect();
    let tenants: BTreeMap<_, _> = tenants.into_iter().map(|(name, count)| (name.as_str(), *count)).collect();
    let of_small = |name: &str, resource: &str| {
        format!("sandpool_tenant_quota_{name}{{tenant=\"small\",resource=\"{resource}\"}}")
    };
    let expected = [
        (of_small("limit", "executions"), 1.0),
        (of_small("limit", "sessions"), 1.0),
        (of_small("refusals_total", "executions"), 0.0),
        (of_small("refusals_total", "sessions"), 1.0),
        (of_small("used", "executions"), 0.0),
        (of_small("used", "sessions"), 1.0),
    ];
    let expected: BTreeMap<_, _> = expected.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(tenants, expected, "others have no quota, and so no label");
    assert_eq!(of(&counts, "sandpool_pool_refusals_total{pool=\"python\",reason=\"overQuota\"}"), 1);
}

#[tokio::test]
async fn a_pool_in_trouble_says_so() {
    let memory = Memory::new(MemoryConfig::default());
    memory.all_boots(Boot::Fails("no interpreter".to_owned()));
    let served = Served::over(memory).await;
    let counts = settles(&served, "sandpool_pool_trouble{pool=\"python\"}", 1).await;
    assert!(of(&counts, "sandpool_pool_boot_failures_total{pool=\"python\"}") >= 1);
    assert_eq!(run(&served, "one-session", "out hi").await.status, 503);
    let counts = scraped(&served).await;
    assert_eq!(of(&counts, "sandpool_pool_refusals_total{pool=\"python\",reason=\"poolBroken\"}"), 1);
    assert_eq!(of(&counts, "sandpool_http_refusals_total{class=\"5xx\",code=\"SessionPoolBroken\"}"), 1);
}

#[tokio::test]
async fn metrics_are_for_who_may_look_at_everything() {
    let served = Served::start().await;
    for (token, status) in [
        (served.token_for(Role::Reader, None, None), 200),
        (served.token_for(Role::Admin, None, None), 200),
        (served.token_for(Role::Reader, Some("python"), None), 403),
        (served.token_for(Role::Reader, None, Some("chat-17")), 403),
        (served.token_of("acme", Role::Admin), 403),
        (served.token_with(&[Scope::Admin]), 200),
        (served.token_with(&[Scope::Execute]), 403),
        ("wrong".to_owned(), 401),
    ] {
        assert_eq!(served.as_(&token, "GET", "/metrics", "").await.status.as_u16(), status, "{token}");
    }
    assert_eq!(served.call("POST", "/metrics", "").await.status, 405);
}

#[tokio::test]
async fn who_knows_the_newer_form_gets_it_and_all_others_the_older_one() {
    let served = Served::start().await;
    let token = served.token_for(Role::Reader, None, None);
    // Of which the first is counted in all that follow.
    asked(&served, &token, "*/*").await;
    let newer =
        asked(&served, &token, "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3").await;
    assert_eq!(newer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let older = asked(&served, &token, "*/*").await;
    assert_eq!(older.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(!older.text().contains("# EOF") && older.text().contains("# TYPE sandpool_pool_waits_total counter"));
    let names = |text: &str| {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(newer.text()), names(older.text()));
}

#[tokio::test]
async fn nothing_of_a_session_is_in_it_and_every_metric_is_in_the_guide() {
    let served = Served::start().await;
    run(&served, SESSION, SECRET).await;
    run(&served, SESSION, &format!("raise {SESSION}: {SECRET}")).await;
    served.call("PUT", &format!("/pools/python/sessions/{SESSION}/files/{SESSION}.txt"), SECRET).await;
    served.call("GET", &format!("/pools/python/sessions/{SESSION}/files/none-of-{SESSION}"), "").await;
    served.call("GET", &format!("/{SESSION}/nowhere"), "").await;
    let sandboxes: Vec<_> = served.memory.sandboxes().iter().map(|sandbox| sandbox.id.to_string()).collect();
    let token = served.token_for(Role::Reader, None, None);
    for accept in ["*/*", OPEN_METRICS] {
        let answer = asked(&served, &token, accept).await;
        for word in sandboxes.iter().map(String::as_str).chain([SESSION, "what-somebody-ran", "tester"]) {
            assert!(!answer.text().contains(word), "{word} is in it");
        }
    }
    let guide = include_str!("../../../../docs/metrics.md");
    let text = asked(&served, &token, "*/*").await;
    let described = text.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    // What is there only with a store, and only with a collector.
    let others = ["sandpool_store_trouble", "sandpool_telemetry_sent_total", "sandpool_telemetry_dropped_total"];
    let described: BTreeSet<_> = described.chain(others).collect();
    let documented: BTreeSet<_> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("sandpool_") || name.starts_with("azure_"))
        .collect();
    assert_eq!(described, documented);
}
