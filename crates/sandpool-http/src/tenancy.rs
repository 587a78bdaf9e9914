//! Tests: tenants do not see each other, in no dialect.

use serde_json::json;

use crate::auth::{Role, Scope};
use crate::served::{Answer, Served};

/// What an answer says, without what is its own: the number of the refusal.
fn said(answer: &Answer) -> (u16, String) {
    let mut body = answer.json();
    body["error"]["traceId"] = json!(null);
    (answer.status.as_u16(), body.to_string())
}

#[tokio::test]
async fn the_same_identifier_of_two_tenants_is_two_sessions() {
    let served = Served::start().await;
    let (acme, globex) = (served.token_of("acme", Role::Executor), served.token_of("globex", Role::Executor));
    let native = "/pools/python/sessions/chat-17";
    let mut sandboxes = Vec::new();
    for (token, word) in [(&acme, "acme"), (&globex, "globex")] {
        let opened = served.as_(token, "PUT", native, "").await.json();
        assert_eq!((&opened["isNew"], &opened["tenant"]), (&json!(true), &json!(word)));
        sandboxes.push(opened["sandbox"].clone());
        assert_eq!(served.as_(token, "PUT", &format!("{native}/files/who.txt"), word).await.status, 200);
    }
    assert_ne!(sandboxes[0], sandboxes[1]);
    for (token, word) in [(&acme, "acme"), (&globex, "globex")] {
        assert_eq!(served.as_(token, "GET", &format!("{native}/files/who.txt"), "").await.text(), word);
        let azure = "/pools/python/files/who.txt/content?identifier=chat-17";
        assert_eq!(served.as_(token, "GET", azure, "").await.text(), word);
    }
    assert_eq!(served.as_(&acme, "DELETE", native, "").await.status, 204);
    assert_eq!(served.as_(&globex, "GET", native, "").await.json()["sandbox"], sandboxes[1], "the other one's stays");
}

#[tokio::test]
async fn what_is_another_tenants_is_as_if_it_were_not_there() {
    let served = Served::start().await;
    let (acme, globex) = (served.token_of("acme", Role::Executor), served.token_of("globex", Role::Executor));
    let run =
        |name: &str| (format!("/pools/python/sessions/{name}/executions"), json!({ "code": "value 42" }).to_string());
    let (path, body) = run("chat-17");
    let execution = served.as_(&acme, "POST", &path, body).await.json();
    let id = execution["id"].as_str().unwrap();
    // Globex has a session of its own, so that executions are looked for in one that is there, too.
    let (path, body) = run("other");
    assert_eq!(served.as_(&globex, "POST", &path, body).await.status, 200);
    let none = "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33";
    let calls = [
        ("GET", "/pools/python/sessions/{s}".to_owned()),
        ("DELETE", "/pools/python/sessions/{s}".to_owned()),
        ("GET", "/pools/python/sessions/{s}/executions".to_owned()),
        ("GET", "/pools/python/sessions/{s}/executions/{e}".to_owned()),
        ("GET", "/pools/python/sessions/{s}/executions/{e}/events".to_owned()),
        ("POST", "/pools/python/sessions/{s}/executions/{e}/stop".to_owned()),
        ("POST", "/pools/python/sessions/{s}/executions/{e}/input".to_owned()),
        ("GET", "/pools/python/sessions/other/executions/{e}".to_owned()),
        ("GET", "/pools/python/sessions/{s}/files".to_owned()),
        ("GET", "/pools/python/sessions/{s}/files/a.txt".to_owned()),
        ("DELETE", "/pools/python/sessions/{s}/files/a.txt".to_owned()),
        ("GET", "/pools/python/executions/{e}?identifier={s}".to_owned()),
        ("GET", "/pools/python/code/execute/{e}?identifier={s}".to_owned()),
        ("GET", "/pools/python/executions/{e}?identifier=other".to_owned()),
        ("GET", "/pools/python/session?identifier={s}".to_owned()),
        ("DELETE", "/pools/python/session?identifier={s}".to_owned()),
        ("GET", "/pools/python/.management/getSession?identifier={s}".to_owned()),
        ("POST", "/pools/python/.management/stopSession?identifier={s}".to_owned()),
        ("GET", "/pools/python/files/a.txt?identifier={s}".to_owned()),
        ("DELETE", "/pools/python/files/a.txt?identifier={s}".to_owned()),
    ];
    for (method, call) in &calls {
        let heard = served.as_(&globex, method, &call.replace("{s}", "chat-17").replace("{e}", id), "").await;
        let nothing = served.as_(&globex, method, &call.replace("{s}", "nowhere").replace("{e}", none), "").await;
        assert!(heard.status.is_client_error(), "{method} {call}: {heard:?}");
        let (status, text) = said(&heard);
        let made_alike = text.replace("chat-17", "nowhere").replace(id, none);
        assert_eq!((status, made_alike), said(&nothing), "{method} {call}");
    }
    // What is there is whose it is, whatever was tried.
    let path = format!("/pools/python/sessions/chat-17/executions/{id}");
    assert_eq!(served.as_(&acme, "GET", &path, "").await.json()["state"], "ended");
}

#[tokio::test]
async fn lists_show_ones_own_and_an_operator_all_with_their_tenants() {
    let served = Served::start().await;
    let tokens = ["acme", "globex"].map(|name| (name, served.token_of(name, Role::Admin)));
    for (name, token) in &tokens {
        assert_eq!(served.as_(token, "PUT", &format!("/pools/python/sessions/{name}-1"), "").await.status, 201);
    }
    let operator = served.token_for(Role::Admin, None, None);
    let names = |answer: Answer, list: &str| -> Vec<String> {
        let body = answer.json();
        let found = body[list].as_array().unwrap().iter();
        found
            .map(|one| format!("{} {}", one["identifier"].as_str().unwrap(), one["tenant"].as_str().unwrap_or("-")))
            .collect()
    };
    let lists = [
        ("/pools/python/sessions", "value"),
        ("/pools/python/listSessions", "sessions"),
        ("/pools/python/.management/listSessions", "value"),
    ];
    for (path, list) in lists {
        for (name, token) in &tokens {
            let seen = names(served.as_(token, "GET", path, "").await, list);
            let tenant = if path.ends_with("/sessions") { *name } else { "-" };
            assert_eq!(seen, [format!("{name}-1 {tenant}")], "{path}: an administrator of one tenant sees that one");
        }
        assert_eq!(names(served.as_(&operator, "GET", path, "").await, list), ["acme-1 acme", "globex-1 globex"]);
        let one = names(served.as_(&operator, "GET", &format!("{path}?tenant=acme"), "").await, list);
        assert_eq!(one, ["acme-1 acme"]);
    }
    for (path, name) in
        [("/pools/python/sessions/acme-1?", "acme"), ("/pools/python/session?identifier=acme-1&", "acme")]
    {
        let named = format!("{path}tenant={name}");
        assert_eq!(served.as_(&operator, "GET", &named, "").await.status, 200);
        assert_eq!(served.as_(&tokens[0].1, "GET", &named, "").await.status, 200, "one may name oneself");
        let (status, code, _) = served.as_(&tokens[1].1, "GET", &named, "").await.refusal();
        assert_eq!((status, code.as_str()), (403, "Forbidden"));
    }
    let count = |token: &str| {
        let token = token.to_owned();
        let served = &served;
        async move { served.as_(&token, "GET", "/pools/python", "").await.json()["sessions"].clone() }
    };
    assert_eq!((count(&tokens[0].1).await, count(&operator).await), (json!(1), json!(2)));
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_told_with_its_name() {
    let served = Served::start().await;
    let small = served.token_of("small", Role::Executor);
    assert_eq!(served.as_(&small, "PUT", "/pools/python/sessions/first", "").await.status, 201);
    let calls = [
        ("PUT", "/pools/python/sessions/second", ""),
        ("POST", "/pools/shell/sessions/second/executions", r#"{"command": "true"}"#),
        ("PUT", "/pools/python/sessions/second/files/a.txt", "a"),
        ("POST", "/pools/python/executions?identifier=second", r#"{"code": "1"}"#),
        ("GET", "/pools/python/files?identifier=second", ""),
    ];
    for (method, path, body) in calls {
        let refused = served.as_(&small, method, path, body).await;
        let (status, code, target) = refused.refusal();
        assert_eq!((status, code.as_str(), target), (429, "TenantQuotaExceeded", json!("sessions")), "{path}");
        assert_eq!(refused.json()["message"], "Tenant small has used up its quota of 1 sessions.");
        assert_eq!(refused.header("retry-after"), "1");
    }
    // Others have what they had.
    assert_eq!(
        served.as_(&served.token_of("acme", Role::Executor), "PUT", "/pools/python/sessions/second", "").await.status,
        201
    );
    let path = "/pools/python/sessions/first/executions";
    let running = served.as_(&small, "POST", path, r#"{"code": "sleep 3600000", "waitSeconds": 0}"#).await;
    assert_eq!(running.status, 202);
    let refused = served.as_(&small, "POST", path, r#"{"code": "value 1"}"#).await;
    assert_eq!((refused.status.as_u16(), refused.refusal().2), (429, json!("concurrent executions")));
    let refused =
        served.as_(&small, "POST", "/pools/python/executions?identifier=first", r#"{"code": "value 1"}"#).await;
    assert_eq!((refused.status.as_u16(), refused.refusal().2), (429, json!("concurrent executions")));
}

#[tokio::test]
async fn a_token_with_scopes_is_good_for_these_only() {
    let served = Served::start().await;
    let (files, runs) = (served.token_with(&[Scope::Files]), served.token_with(&[Scope::Execute]));
    let (admin, every) = (served.token_with(&[Scope::Admin]), served.token_for(Role::Admin, None, None));
    let here = "/pools/python/sessions/chat-17";
    let code = json!({ "code": "value 1" }).to_string();
    let azure = "/pools/python/executions?api-version=2025-10-02-preview&identifier=chat-17";
    let modern = json!({ "codeInputType": "Inline", "executionType": "Synchronous", "code": "value 1" }).to_string();
    // What, with which scope.
    let calls = [
        ("PUT", format!("{here}/files/a.txt"), "x".to_owned(), Some(Scope::Files)),
        ("GET", format!("{here}/files/a.txt"), String::new(), Some(Scope::Files)),
        ("GET", format!("{here}/files"), String::new(), Some(Scope::Files)),
        ("GET", "/pools/python/files/a.txt/content?identifier=chat-17".to_owned(), String::new(), Some(Scope::Files)),
        ("POST", format!("{here}/executions"), code, Some(Scope::Execute)),
        ("GET", format!("{here}/executions"), String::new(), Some(Scope::Execute)),
        ("POST", azure.to_owned(), modern, Some(Scope::Execute)),
        ("GET", here.to_owned(), String::new(), None),
        ("GET", "/pools/python".to_owned(), String::new(), None),
        ("POST", "/pools/python/mcp/credentials".to_owned(), String::new(), Some(Scope::Admin)),
        ("DELETE", format!("{here}/files/a.txt"), String::new(), Some(Scope::Files)),
        ("DELETE", here.to_owned(), String::new(), Some(Scope::Execute)),
    ];
    for (method, path, body, needed) in &calls {
        for (token, has) in [(&files, Some(Scope::Files)), (&runs, Some(Scope::Execute))] {
            if needed.is_none() || *needed == has {
                continue;
            }
            let refused = served.as_(token, method, path, body.clone()).await;
            assert_eq!(refused.refusal().0, 403, "{method} {path}");
            let challenge = refused.header("www-authenticate");
            let word = needed.map(Scope::word).unwrap();
            assert!(challenge.contains(&format!(r#"error="insufficient_scope", scope="{word}""#)), "{challenge}");
        }
        let token = match needed {
            Some(Scope::Files) | None => &files,
            Some(Scope::Execute) => &runs,
            Some(Scope::Admin) => &admin,
        };
        let good = served.as_(token, method, path, body.clone()).await;
        assert!(good.status.is_success(), "{method} {path}: {good:?}");
    }
    // Everything is everything, and who names no scope has all that its role may.
    for token in [&admin, &every] {
        assert!(served.as_(token, "PUT", here, "").await.status.is_success());
        assert!(served.as_(token, "GET", &format!("{here}/files"), "").await.status.is_success());
    }
}
