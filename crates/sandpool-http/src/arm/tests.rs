use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::auth::Role;
use crate::served::{Answer, Served, read};

const POOLS: &str = "/subscriptions/s-1/resourceGroups/lab/providers/Microsoft.App/sessionPools";

async fn send(served: &Served, token: &str, method: &str, path: &str, body: Value) -> Answer {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
    read(served.send(request.header("host", "arm.test").body(body).unwrap()).await).await
}

#[expect(clippy::needless_pass_by_value, reason = "properties are made where they are given")]
fn resource(properties: Value) -> Value {
    json!({ "location": "westus2", "tags": { "team": "blue" }, "properties": properties })
}

/// Asks an address until it says that all is done.
async fn poll(served: &Served, token: &str, address: &str) -> Answer {
    let path = address.strip_prefix("http://arm.test").expect("an address of ours");
    for _ in 0..500 {
        let answer = send(served, token, "GET", path, Value::Null).await;
        let goes_on = answer.status == 202 || answer.status == 200 && answer.json()["status"] == "InProgress";
        if !goes_on {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{address} goes on and on");
}

#[tokio::test]
async fn a_pool_is_made_read_patched_listed_and_deleted() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let ask = async |method: &str, path: &str, body: Value| send(&served, &admin, method, path, body).await;
    let version = "api-version=2025-07-01";
    let calc = format!("{POOLS}/calc?{version}");
    assert_eq!(ask("GET", &calc, Value::Null).await.json()["error"]["code"], "ResourceNotFound");
    let made = ask("PUT", &calc, resource(json!({
        "containerType": "shell",
        "ScaleConfiguration": { "maxConcurrentSessions": 7, "readysessioninstances": 1 },
        "dynamicPoolConfiguration": { "lifecycleConfiguration": { "lifecycleType": "timed", "coolDownPeriodInSeconds": 450 } },
        "sessionNetworkConfiguration": { "status": "egressenabled" },
    }))).await;
    assert_eq!(made.status, 201, "{made:?}");
    let done = poll(&served, &admin, made.header("azure-asyncoperation")).await.json();
    assert_eq!(done["status"], "Succeeded", "{done}");
    let got = ask("GET", &calc, Value::Null).await.json();
    assert_eq!(got["id"], format!("{POOLS}/calc"));
    assert_eq!(
        (&got["location"], &got["tags"]["team"], &got["name"]),
        (&json!("westus2"), &json!("blue"), &json!("calc"))
    );
    let properties = &got["properties"];
    assert_eq!(properties["containerType"], "Shell");
    assert_eq!(properties["scaleConfiguration"], json!({ "maxConcurrentSessions": 7, "readySessionInstances": 1 }));
    assert_eq!(properties["dynamicPoolConfiguration"]["lifecycleConfiguration"]["cooldownPeriodInSeconds"], 450);
    assert_eq!(properties["sessionNetworkConfiguration"]["status"], "EgressEnabled");
    assert_eq!(properties["provisioningState"], "Succeeded");
    // The endpoint is one that data-plane clients can use.
    let endpoint = properties["poolManagementEndpoint"].as_str().unwrap();
    let path = endpoint.strip_prefix("http://arm.test").unwrap();
    let ran =
        ask("POST", &format!("{path}/executions?identifier=chat-17&{version}"), json!({ "shellCommand": "out hi" }))
            .await;
    assert_eq!(ran.json()["result"]["stdout"], "hi\n", "{ran:?}");
    // A patch changes what it names, and waits at an address.
    let patched = ask("PATCH", &calc, json!({ "tags": { "team": null, "cost": "7" }, "properties": { "SCALECONFIGURATION": { "maxConcurrentSessions": 9 } } })).await;
    assert_eq!(patched.status, 202);
    let done = poll(&served, &admin, patched.header("location")).await.json();
    assert_eq!(done["tags"], json!({ "cost": "7" }));
    assert_eq!(
        done["properties"]["scaleConfiguration"],
        json!({ "maxConcurrentSessions": 9, "readySessionInstances": 1 })
    );
    assert_eq!(
        done["properties"]["dynamicPoolConfiguration"]["lifecycleConfiguration"]["cooldownPeriodInSeconds"],
        450
    );
    // Lists: the server's own pools are in every group, this one in its own.
    let names = async |path: &str| {
        let list = ask("GET", path, Value::Null).await.json();
        list["value"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pool| pool["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(POOLS).await, ["calc", "node", "python", "shell"]);
    assert_eq!(
        names("/subscriptions/s-1/providers/Microsoft.App/sessionPools").await,
        ["calc", "node", "python", "shell"]
    );
    assert_eq!(
        names("/subscriptions/s-1/resourceGroups/other/providers/Microsoft.App/sessionPools").await,
        ["node", "python", "shell"]
    );
    let taken = ask(
        "PUT",
        "/subscriptions/s-1/resourceGroups/other/providers/Microsoft.App/sessionPools/calc",
        resource(json!({})),
    )
    .await;
    assert_eq!(taken.json()["error"]["code"], "SessionPoolConflict");
    // Older versions have the flat form.
    let flat = ask("GET", &format!("{POOLS}/CALC?api-version=2024-02-02-preview"), Value::Null).await.json();
    assert_eq!(
        flat["properties"]["dynamicPoolConfiguration"],
        json!({ "executionType": "Timed", "cooldownPeriodInSeconds": 450 })
    );
    let deleted = ask("DELETE", &calc, Value::Null).await;
    assert_eq!((deleted.status.as_u16(), deleted.body.len()), (202, 0));
    assert_eq!(poll(&served, &admin, deleted.header("location")).await.status, 204);
    assert_eq!(ask("DELETE", &calc, Value::Null).await.status, 204);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_not_dropped() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let calc = format!("{POOLS}/calc");
    for (properties, target) in [
        (json!({ "containerType": "GpuBase" }), "properties.containerType"),
        (json!({ "customContainerTemplate": { "containers": [{}] } }), "properties.customContainerTemplate"),
        (json!({ "secrets": [{ "name": "a", "value": "b" }] }), "properties.secrets"),
        (
            json!({ "managedIdentitySettings": [{ "identity": "system", "lifecycle": "Main" }] }),
            "properties.managedIdentitySettings",
        ),
        (json!({ "poolManagementType": "Manual" }), "properties.poolManagementType"),
        (
            json!({ "scaleConfiguration": { "maxConcurrentSessions": 0 } }),
            "properties.scaleConfiguration.maxConcurrentSessions",
        ),
        (
            json!({ "scaleConfiguration": { "maxConcurrentSessions": "9" } }),
            "properties.scaleConfiguration.maxConcurrentSessions",
        ),
        (
            json!({ "dynamicPoolConfiguration": { "lifecycleConfiguration": { "lifecycleType": "OnContainerExit" } } }),
            "properties.dynamicPoolConfiguration.lifecycleConfiguration.lifecycleType",
        ),
        (json!({ "sessionNetworkConfiguration": { "status": "on" } }), "properties.sessionNetworkConfiguration.status"),
    ] {
        let answer = send(&served, &admin, "PUT", &calc, resource(properties.clone())).await;
        let told = answer.json();
        assert_eq!((answer.status.as_u16(), &told["error"]["target"]), (400, &json!(target)), "{properties} {told}");
    }
    for (body, status) in [("[]", 400), ("{", 400), ("", 400)] {
        let request =
            Request::put(&calc).header("authorization", format!("Bearer {admin}")).body(Body::from(body)).unwrap();
        assert_eq!(read(served.send(request).await).await.status, status, "{body}");
    }
    assert_eq!(send(&served, &admin, "POST", &calc, Value::Null).await.status, 405);
    // Reading is for readers, changing for operators.
    let reader = served.token_for(Role::Reader, None, None);
    assert_eq!(send(&served, &reader, "GET", &format!("{POOLS}/python"), Value::Null).await.status, 200);
    for (method, path) in [("PUT", calc.as_str()), ("PATCH", calc.as_str()), ("DELETE", calc.as_str())] {
        assert_eq!(send(&served, &reader, method, path, resource(json!({}))).await.status, 403, "{method}");
    }
    assert_eq!(send(&served, "none", "GET", POOLS, Value::Null).await.status, 401);
    // A token for one pool sees that one.
    let one = served.token_for(Role::Reader, Some("python"), None);
    let list = send(&served, &one, "GET", POOLS, Value::Null).await.json();
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_this_resource_cannot_say_stays_as_it_is() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let object = json!({
        "metadata": { "name": "calc" },
        "spec": {
            "containerType": "Shell", "resources": { "memory": "256Mi" }, "env": [{ "name": "A", "value": "b" }],
            "egress": { "mode": "allow-list", "allow": ["pypi.org"] },
        },
    });
    assert_eq!(served.as_(&admin, "PUT", "/pools/calc", object.to_string()).await.status, 201);
    let calc = format!("{POOLS}/calc");
    let enabled = resource(json!({ "sessionNetworkConfiguration": { "status": "EgressEnabled" } }));
    assert_eq!(send(&served, &admin, "PUT", &calc, enabled).await.status, 200);
    let spec = served.as_(&admin, "GET", "/pools/calc/object", "").await.json()["spec"].clone();
    assert_eq!((&spec["resources"]["memory"], &spec["env"][0]["value"]), (&json!("256Mi"), &json!("b")));
    assert_eq!(spec["egress"]["allow"], json!(["pypi.org"]), "the list says what is meant by enabled");
    let disabled = resource(json!({ "sessionNetworkConfiguration": { "status": "EgressDisabled" } }));
    send(&served, &admin, "PATCH", &calc, disabled).await;
    let got = send(&served, &admin, "GET", &calc, Value::Null).await.json();
    assert_eq!(got["properties"]["sessionNetworkConfiguration"]["status"], "EgressDisabled");
}

#[tokio::test]
async fn keys_of_mcp_are_fetched_and_rotated() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let ask =
        async |what: &str| send(&served, &admin, "POST", &format!("{POOLS}/python/{what}"), Value::Null).await.json();
    let key = ask("fetchMCPServerCredentials").await["apiKey"].clone();
    assert!(key.as_str().is_some_and(|key| key.len() > 20), "{key}");
    assert_eq!(ask("fetchMcpServerCredentials").await["apiKey"], key);
    assert_ne!(ask("rotateMcpServerCredentials").await["apiKey"], key);
    let node = send(&served, &admin, "POST", &format!("{POOLS}/node/fetchMcpServerCredentials"), Value::Null).await;
    assert_eq!(node.json()["error"]["code"], "SessionMCPServerNotEnabled");
}

#[tokio::test]
async fn tools_that_ask_around_are_answered() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let provider = send(&served, &admin, "GET", "/subscriptions/s/providers/Microsoft.App", Value::Null).await.json();
    assert_eq!(provider["registrationState"], "Registered");
    let all = format!("{POOLS}/python/providers/Microsoft.Authorization/roleAssignments");
    let (path, role) = (
        format!("{all}/0FB8"),
        "/providers/Microsoft.Authorization/roleDefinitions/0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0",
    );
    let asked = json!({ "properties": { "principalId": "p-1", "roleDefinitionId": role, "principalType": "User" } });
    assert_eq!(send(&served, &admin, "GET", &path, Value::Null).await.status, 404);
    let assigned = send(&served, &admin, "PUT", &path, asked.clone()).await;
    assert_eq!((assigned.status.as_u16(), &assigned.json()["name"]), (201, &json!("0fb8")));
    let told = send(&served, &admin, "GET", &path, Value::Null).await.json();
    assert_eq!(told, assigned.json());
    assert!(told["properties"]["description"].as_str().unwrap().contains("grants nothing"), "{told}");
    assert_eq!(send(&served, &admin, "PUT", &path, asked.clone()).await.status, 200, "the same again");
    let listed = async |query: &str| {
        let value = send(&served, &admin, "GET", &format!("{all}?{query}"), Value::Null).await.json()["value"].clone();
        value.as_array().unwrap().len()
    };
    assert_eq!((listed("").await, listed("%24filter=principalId%20eq%20%27p-2%27").await), (1, 0));
    for (name, properties, told) in [
        ("two", json!({ "principalId": "p-1", "roleDefinitionId": role }), (409, "RoleAssignmentExists")),
        ("0fb8", json!({ "principalId": "p-2", "roleDefinitionId": role }), (409, "RoleAssignmentUpdateNotPermitted")),
        ("two", json!({ "principalId": "p-2", "roleDefinitionId": "/x/y" }), (400, "RoleDefinitionDoesNotExist")),
        ("two", json!({ "roleDefinitionId": role }), (400, "InvalidRequestContent")),
    ] {
        let refused = send(&served, &admin, "PUT", &format!("{all}/{name}"), json!({ "properties": properties })).await;
        let code = refused.json()["error"]["code"].clone();
        assert_eq!((refused.status.as_u16(), code.as_str().unwrap()), told, "{refused:?}");
    }
    assert_eq!(send(&served, &admin, "DELETE", &path, Value::Null).await.status, 200);
    assert_eq!((send(&served, &admin, "DELETE", &path, Value::Null).await.status.as_u16(), listed("").await), (204, 0));
    for path in ["operationStatuses/77", "operationResults/zz"] {
        let path = format!("/subscriptions/s/providers/Microsoft.App/locations/local/{path}");
        assert_eq!(send(&served, &admin, "GET", &path, Value::Null).await.status, 404);
    }
}

#[tokio::test]
async fn a_custom_container_is_made_and_its_secrets_are_told_to_nobody() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let web = format!("{POOLS}/web");
    let container = json!({
        "Image": "stranger", "name": "web", "command": ["serve"], "args": null,
        "env": [{ "name": "A", "value": "b" }, { "name": "KEY", "secretRef": "key" }],
        "resources": { "cpu": 0.5, "memory": "1Gi" },
        "probes": [
            { "type": "liveness", "httpGet": { "path": "/up", "port": 8000, "scheme": "HTTP", "host": "" }, "periodSeconds": 5 },
            { "Type": "Startup", "TcpSocket": { "Port": 8000 }, "initialDelaySeconds": null },
        ],
    });
    let properties = json!({
        "containerType": "CustomContainer",
        "customContainerTemplate": { "containers": [container], "ingress": { "targetport": 8000 }, "registryCredentials": null },
        "secrets": [{ "name": "key", "value": "hush" }],
        "dynamicPoolConfiguration": { "lifecycleConfiguration": { "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 600 } },
    });
    let made = send(&served, &admin, "PUT", &web, resource(properties)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let got = send(&served, &admin, "GET", &web, Value::Null).await;
    assert!(!got.text().contains("hush"), "{}", got.text());
    let got = got.json();
    let properties = &got["properties"];
    assert_eq!(properties["secrets"], json!([{ "name": "key" }]));
    assert_eq!(properties["customContainerTemplate"]["containers"][0]["image"], "stranger");
    assert_eq!(properties["customContainerTemplate"]["ingress"]["targetPort"], 8000);
    let probes = &properties["customContainerTemplate"]["containers"][0]["probes"];
    assert_eq!((&probes[0]["type"], &probes[0]["httpGet"]["path"]), (&json!("Liveness"), &json!("/up")));
    assert_eq!((&probes[1]["type"], &probes[1]["tcpSocket"]["port"]), (&json!("Startup"), &json!(8000)));
    assert_eq!((&probes[1]["failureThreshold"], &probes[1]["periodSeconds"]), (&json!(3), &json!(10)));
    assert_eq!(properties["dynamicPoolConfiguration"]["lifecycleConfiguration"]["lifecycleType"], "OnContainerExit");
    // A patch that repeats a secret's name alone keeps its value, and nothing wipes the environment.
    let patched =
        send(&served, &admin, "PATCH", &web, json!({ "properties": { "secrets": [{ "name": "key" }] } })).await;
    assert_eq!(patched.status, 202, "{patched:?}");
    let spec = served.as_(&admin, "GET", "/pools/web/object", "").await.json()["spec"].clone();
    assert_eq!(spec["containerSecrets"], json!([{ "name": "key" }]), "nobody reads it");
    let has = |variable: &(String, String)| variable == &("KEY".to_owned(), "hush".to_owned());
    let pool = sandpool_core::ids::PoolName::parse("web").unwrap();
    assert!(served.node.spec(&pool).unwrap().container.as_ref().unwrap().main.env.iter().any(has));
    let again = json!({ "metadata": { "name": "web" }, "spec": spec });
    let again = served.as_(&admin, "PUT", "/pools/web", again.to_string()).await;
    assert_eq!(again.json()["result"], "changed", "{again:?}");
    assert!(served.node.spec(&pool).unwrap().container.as_ref().unwrap().main.env.iter().any(has));
    // One that only a registry has, and the registry is not there.
    let far = json!({
        "containerType": "CustomContainer",
        "secrets": [{ "name": "password", "value": "hush-hush" }],
        "customContainerTemplate": {
            "containers": [{ "image": "reg.test/a/b:1" }], "ingress": { "targetPort": 1 },
            "registryCredentials": { "server": "reg.test", "userName": "ci", "passwordSecretRef": "password", "identity": "" },
        },
    });
    let path = format!("{POOLS}/far");
    let made = send(&served, &admin, "PUT", &path, resource(far)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let got = loop {
        let got = send(&served, &admin, "GET", &path, Value::Null).await;
        if got.json()["properties"]["provisioningState"] != "InProgress" {
            break got;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(got.json()["properties"]["provisioningState"], "Failed", "{got:?}");
    assert!(!got.text().contains("hush-hush") && got.text().contains("passwordSecretRef"), "{got:?}");
    let object = served.as_(&admin, "GET", "/pools/far/object", "").await.json();
    let pulled = &object["status"]["conditions"][1];
    let expected =
        json!({ "type": "ImagePulled", "status": "False", "reason": "Failed", "message": "there is no registry" });
    assert_eq!(pulled, &expected, "{object}");
    for (properties, target) in [
        (json!({ "containerType": "CustomContainer" }), "properties.customContainerTemplate"),
        (
            json!({ "customContainerTemplate": { "containers": [{ "image": "a", "probes": [{ "type": "Liveness" }] }], "ingress": { "targetPort": 1 } } }),
            "properties.customContainerTemplate.containers[0].probes[0]",
        ),
        (
            json!({ "customContainerTemplate": { "containers": [{ "image": "a", "probes": [{ "type": "Liveness", "httpGet": { "port": 1, "host": "example.com" } }] }], "ingress": { "targetPort": 1 } } }),
            "properties.customContainerTemplate.containers[0].probes[0].httpGet.host",
        ),
        (
            json!({ "customContainerTemplate": { "containers": [{ "image": "a" }], "ingress": { "targetPort": 1 }, "registryCredentials": { "server": "s", "identity": "system" } } }),
            "properties.customContainerTemplate.registryCredentials.identity",
        ),
        (
            json!({ "customContainerTemplate": { "containers": [{ "image": "r.test/a" }], "ingress": { "targetPort": 1 }, "registryCredentials": { "server": "s.test", "username": "u", "passwordSecretRef": "p" } } }),
            "properties.customContainerTemplate.registryCredentials.server",
        ),
        (
            json!({ "customContainerTemplate": { "containers": [{ "image": "nobody" }], "ingress": { "targetPort": 1 } } }),
            "properties.customContainerTemplate.containers[0].image",
        ),
    ] {
        let mut properties = properties;
        properties["containerType"] = json!("CustomContainer");
        let other = format!("{POOLS}/other");
        let answer = send(&served, &admin, "PUT", &other, resource(properties.clone())).await;
        let told = answer.json();
        assert_eq!((answer.status.as_u16(), &told["error"]["target"]), (400, &json!(target)), "{properties} {told}");
    }
}
