use sandpool_core::ids::PoolName;
use serde_json::json;

use super::*;
use crate::auth::Mint;
use crate::served::Served;

const HERE: &str = "/pools/python/sessions/chat-17";

async fn run(served: &Served, session: &str, code: &str) -> Value {
    let path = format!("/pools/python/sessions/{session}/executions");
    let answer = served.call("POST", &path, json!({ "code": code }).to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn a_session_is_suspended_and_every_dialect_brings_it_back() {
    let served = Served::start().await;
    run(&served, "chat-17", "set x 7\nsave /mnt/data/kept as it was").await;
    let suspended = served.call("POST", &format!("{HERE}/suspend"), "").await;
    let body = suspended.json();
    assert_eq!((suspended.status.as_u16(), &body["state"]), (200, &json!("suspended")));
    assert_eq!(body["suspended"]["keeps"], "files");
    assert!(body["suspended"]["bytes"].as_u64() > Some(0), "{body}");
    // Looking at it is not use of it.
    let one = served.call("GET", HERE, "").await.json();
    assert_eq!((&one["state"], &one["usage"]), (&json!("suspended"), &Value::Null));
    let listed = served.call("GET", "/pools/python/sessions?usage=true", "").await.json();
    assert_eq!(listed["value"][0]["state"], "suspended");
    let (status, code, _) = served.call("GET", &format!("{HERE}/executions"), "").await.refusal();
    assert_eq!((status, code.as_str()), (409, "SessionSuspended"));
    // The native API, which says what is lost.
    let ran = run(&served, "chat-17", "load /mnt/data/kept").await;
    assert_eq!(ran["stdout"], "as it was");
    assert_eq!(ran["resumed"], json!({ "keeps": "files", "lost": ["variables", "processes", "executions"] }));
    assert_eq!(run(&served, "chat-17", "out hi").await.get("resumed"), None);
    served.call("POST", &format!("{HERE}/suspend"), "{}").await;
    let resumed = served.call("POST", &format!("{HERE}/resume"), "").await.json();
    assert_eq!((&resumed["isNew"], &resumed["resumed"]["keeps"]), (&json!(false), &json!("files")));
    served.call("POST", &format!("{HERE}/suspend"), "{}").await;
    assert_eq!(served.call("GET", &format!("{HERE}/files/kept"), "").await.text(), "as it was");
    // Azure's.
    served.call("POST", &format!("{HERE}/suspend"), "{}").await;
    let azure = json!({ "properties": {
        "codeInputType": "inline", "executionType": "synchronous", "code": "load /mnt/data/kept",
    } });
    let path = "/pools/python/code/execute?api-version=2024-02-02-preview&identifier=chat-17";
    let ran = served.call("POST", path, azure.to_string()).await;
    assert_eq!((ran.status.as_u16(), ran.text().contains("as it was")), (200, true), "{}", ran.text());
    assert_eq!(served.call("GET", HERE, "").await.json()["state"], "live");
}

#[tokio::test]
async fn what_stands_in_the_way_is_said_with_a_code_of_its_own() {
    let served = Served::start().await;
    let refusal = async |method: &str, path: &str, body: Value| {
        let (status, code, _) = served.call(method, path, body.to_string()).await.refusal();
        (status, code)
    };
    let says = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refusal("POST", &format!("{HERE}/suspend"), json!({})).await, says(404, "NoSessionFoundError"));
    assert_eq!(refusal("POST", &format!("{HERE}/resume"), json!({})).await, says(404, "NoSessionFoundError"));
    let code = json!({ "code": "wait", "waitSeconds": 0 });
    served.call("POST", &format!("{HERE}/executions"), code.to_string()).await;
    assert_eq!(refusal("POST", &format!("{HERE}/suspend"), json!({})).await, says(409, "SessionBusy"));
    assert_eq!(refusal("POST", &format!("{HERE}/snapshots"), json!({})).await, says(409, "SessionBusy"));
    let wrong = refusal("POST", &format!("{HERE}/suspend"), json!({ "forse": true })).await;
    assert_eq!(wrong, says(400, "SessionRequestValidationFailed"));
    assert_eq!(served.call("POST", &format!("{HERE}/suspend"), json!({ "force": true }).to_string()).await.status, 200);
    served.disk.has_room_for(1);
    served.call("PUT", "/pools/python/sessions/chat-18", "").await;
    let full = refusal("POST", "/pools/python/sessions/chat-18/suspend", json!({})).await;
    assert_eq!(full, says(507, "SnapshotStorageFull"));
    served.disk.has_room_for(1 << 30);
    let secret = json!({ "secrets": [{ "name": "KEY", "value": "the-value-itself", "hosts": ["a.example"] }] });
    served.call("PUT", "/pools/python/sessions/chat-19", secret.to_string()).await;
    let path = "/pools/python/sessions/chat-19/suspend";
    assert_eq!(refusal("POST", path, json!({})).await, says(409, "SessionNotSuspendable"));
    // A byte has changed: its file is named, and nothing starts from it.
    let names = sandpool_store_names(&served);
    served.disk.spoil(&names.join("files"), |bytes| bytes[20] ^= 1);
    let damaged = served.call("PUT", HERE, "").await;
    assert!(damaged.text().contains("files has other bytes"), "{}", damaged.text());
    assert_eq!(refusal("POST", &format!("{HERE}/resume"), json!({})).await, says(409, "SnapshotDamaged"));
    assert_eq!(served.call("DELETE", HERE, "").await.status, 204);
    assert_eq!(served.call("GET", HERE, "").await.status, 404);
}

fn sandpool_store_names(served: &Served) -> std::path::PathBuf {
    use sandpool_node::cut::Disk;
    let root = std::path::Path::new("/snapshots");
    root.join(&served.disk.names(root).unwrap()[0])
}

#[tokio::test]
async fn copies_and_forks_are_their_tenants_own() {
    let served = Served::start().await;
    run(&served, "chat-17", "save /mnt/data/kept one").await;
    let copy = served.call("POST", &format!("{HERE}/snapshots"), json!({ "name": "first" }).to_string()).await;
    assert_eq!((copy.status.as_u16(), &copy.json()["keeps"]), (201, &json!("files")));
    let id = copy.json()["id"].as_str().unwrap().to_owned();
    run(&served, "chat-17", "save /mnt/data/kept two").await;
    let listed = served.call("GET", &format!("{HERE}/snapshots"), "").await.json();
    assert_eq!(listed["value"], json!([copy.json()]));
    let body = json!({ "identifier": "fork-1", "snapshot": "first" }).to_string();
    let fork = served.call("POST", &format!("{HERE}/fork"), body.clone()).await;
    assert_eq!((fork.status.as_u16(), &fork.json()["isNew"]), (201, &json!(true)), "{}", fork.text());
    assert_eq!(run(&served, "fork-1", "load /mnt/data/kept").await["stdout"], "one");
    let (status, code, _) = served.call("POST", &format!("{HERE}/fork"), body).await.refusal();
    assert_eq!((status, code.as_str()), (409, "SessionExists"));
    // Another tenant finds none of it, by name or by id.
    let acme = served.token_of("acme", Role::Executor);
    for which in ["first", id.as_str()] {
        let body = json!({ "identifier": "fork-2", "snapshot": which }).to_string();
        let (status, code, _) = served.as_(&acme, "POST", &format!("{HERE}/fork"), body).await.refusal();
        assert_eq!((status, code.as_str()), (404, "SnapshotNotFound"));
        let path = format!("{HERE}/snapshots/{which}");
        assert_eq!(served.as_(&acme, "DELETE", &path, "").await.status, 404);
    }
    let listed = served.as_(&acme, "GET", &format!("{HERE}/snapshots"), "").await.json();
    assert_eq!(listed["value"], json!([]));
    // A reader looks, and a token of one session makes no other.
    let reader = served.token_for(Role::Reader, None, None);
    assert_eq!(served.as_(&reader, "GET", &format!("{HERE}/snapshots"), "").await.status, 200);
    assert_eq!(served.as_(&reader, "POST", &format!("{HERE}/suspend"), "").await.status, 403);
    let bound = served.minted(&Mint { session: Some("chat-17".to_owned()), ..Mint::new("one", Role::Executor) });
    let body = json!({ "identifier": "fork-3" }).to_string();
    assert_eq!(served.as_(&bound, "POST", &format!("{HERE}/fork"), body).await.status, 403);
    assert_eq!(served.as_(&bound, "POST", &format!("{HERE}/suspend"), "").await.status, 200);
    assert_eq!(served.call("DELETE", &format!("{HERE}/snapshots/{id}"), "").await.status, 204);
    assert_eq!(served.call("DELETE", &format!("{HERE}/snapshots/{id}"), "").await.status, 404);
    let python = PoolName::parse("python").unwrap();
    let metrics = served.node.metrics();
    let pool = metrics.pools.iter().find(|pool| pool.status.spec.name == python).unwrap();
    assert_eq!((pool.suspended, pool.kept.contains(&("forked", 1))), (1, true), "{:?}", pool.kept);
}
