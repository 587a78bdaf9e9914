use expect_test::{Expect, expect};
use sandpool_core::limits::Limits;
use sandpool_objects::ImageConfig;
use sandpool_objects::pool::EnvVariable;

use super::*;

/// Reads and checks `yaml`; answers the error's text.
fn check(yaml: &str, expected: &Expect) {
    let said = match Settings::parse(yaml) {
        Err(error) => error.to_string(),
        Ok(settings) => match settings.check() {
            Err(error) => error.to_string(),
            Ok(()) => "fine".into(),
        },
    };
    expected.assert_eq(&said);
}

/// A file with one pool whose spec has `lines` besides its container type.
fn pool(lines: &str) -> String {
    format!("pools:\n  - metadata: {{ name: p }}\n    spec:\n      containerType: PythonLTS\n      {lines}\n")
}

#[test]
fn the_example_of_the_guide_is_fine() {
    let guide = include_str!("../../../../docs/cli.md");
    let example = guide.split("```yaml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    check(example, &expect!["fine"]);
}

#[test]
fn what_may_be_reached_is_checked() {
    check(&pool("egress: { mode: allow-list, allow: [pypi.org, '*.example.com:8443'] }"), &expect!["fine"]);
    check(&pool("sessionNetworkConfiguration: { status: EgressEnabled }"), &expect!["fine"]);
    check(&pool("egress: { mode: none }"), &expect!["fine"]);
    check(
        &pool("egress: { mode: allow-list }"),
        &expect!["pools[0].spec.egress.allow: is empty: that is the mode none"],
    );
    check(
        &pool("egress: { mode: allow-list, allow: ['https://pypi.org'] }"),
        &expect![[r#"pools[0].spec.egress.allow: "https://pypi.org" is a URL: name the host in it"#]],
    );
    check(
        &pool("egress: { mode: open, allowAddresses: [10.0.0.1/8] }"),
        &expect![[r#"pools[0].spec.egress.allowAddresses: "10.0.0.1/8" has bits set after its first 8"#]],
    );
    check(
        &pool("sessionNetworkConfiguration: { status: EgressDisabled }\n      egress: { mode: open }"),
        &expect!["pools[0].spec.sessionNetworkConfiguration.status: is EgressDisabled, but egress.mode is not none"],
    );
    let spec = |lines: &str| {
        Settings::parse(&pool(lines)).unwrap().pools[0].to_spec("/image".into(), &ImageConfig::default()).unwrap()
    };
    let open = spec("egress: { mode: open }");
    assert!(open.egress.is_some() && open.env.iter().any(|(name, _)| name == "https_proxy"));
    let none = spec("egress: { mode: none }");
    assert!(none.egress.is_none() && none.env.is_empty());
}

#[test]
fn an_empty_file_means_the_defaults_of_up() {
    assert_eq!(Settings::parse("# nothing\n").unwrap(), Settings::default());
    assert_eq!(Settings::parse("{}").unwrap(), Settings::default());
    let names: Vec<_> = Settings::default().pools.iter().map(|pool| pool.metadata.name.clone()).collect();
    assert_eq!(names, ["python", "node", "shell"]);
    Settings::default().check().unwrap();
}

#[test]
fn unknown_keys_are_errors_that_name_their_path() {
    check(
        "listn: 127.0.0.1:1",
        &expect![
            "unknown field `listn`, expected one of `listen`, `https`, `home`, `images`, `memoryReserve`, `auth`, `tenants`, `previewHost`, `egressLimits`, `metrics`, `telemetry`, `snapshots`, `ociRuntimes`, `machines`, `pools`"
        ],
    );
    check(
        &pool("resources: { memroy: 2Gi }"),
        &expect![
            "pools[0].spec.resources: unknown field `memroy`, expected one of `cpu`, `memory`, `dataDisk`, `tmpDisk`, `pids` at line 5 column 20"
        ],
    );
    check(
        "auth: { apiKeys: [ { name: a, sha256: b, rolle: admin } ] }",
        &expect![
            "auth.apiKeys[0]: unknown field `rolle`, expected one of `name`, `sha256`, `role`, `pools` at line 1 column 42"
        ],
    );
}

#[test]
fn values_of_the_wrong_kind_are_errors_that_name_their_path() {
    check("listen: here", &expect!["listen: invalid socket address syntax at line 1 column 9"]);
    check(
        &pool("resources: { memory: lots }"),
        &expect![[
            r#"pools[0].spec.resources.memory: "lots" is not a size; write bytes, or a number with Ki, Mi, Gi or Ti, such as 512Mi at line 5 column 28"#
        ]],
    );
    check(
        &pool("scaleConfiguration: { maxConcurrentSessions: -1 }"),
        &expect![
            "pools[0].spec.scaleConfiguration.maxConcurrentSessions: invalid type: integer `-1`, expected u32 at line 5 column 52"
        ],
    );
    check(
        &pool("dynamicPoolConfiguration: { lifecycleConfiguration: { lifecycleType: OnSunday } }"),
        &expect![
            "pools[0].spec.dynamicPoolConfiguration.lifecycleConfiguration.lifecycleType: unknown variant `OnSunday`, expected `Timed` or `OnContainerExit` at line 5 column 76"
        ],
    );
    check(
        "pools: [ { metadata: { name: p }, spec: { containerType: Ruby } } ]",
        &expect![
            "pools[0].spec.containerType: unknown variant `Ruby`, expected one of `PythonLTS`, `NodeLTS`, `Shell`, `CustomContainer` at line 1 column 58"
        ],
    );
    check(
        "machines: { vmm: xen }",
        &expect![
            "machines.vmm: unknown variant `xen`, expected one of `qemu`, `qemu-emulated`, `firecracker`, `cloud-hypervisor` at line 1 column 18"
        ],
    );
    check("pools: [ { metadata: { name: p } } ]", &expect!["pools[0]: missing field `spec` at line 1 column 10"]);
    check("- a list", &expect!["invalid type: sequence, expected struct Settings"]);
}

#[test]
fn values_out_of_range_are_errors_that_name_their_path() {
    check("pools: []", &expect!["pools: there must be one at least"]);
    check(
        "machines: { vmm: firecracker, path: firecracker }",
        &expect!["machines.path: firecracker is no absolute path"],
    );
    check("machines: { path: /opt/firecracker }", &expect!["machines.path: whose program is it? machines.vmm says so"]);
    check(
        &pool("dynamicPoolConfiguration: { lifecycleConfiguration: { suspendAfterInSeconds: 300 } }"),
        &expect![
            "pools[0].spec.dynamicPoolConfiguration.lifecycleConfiguration.suspendAfterInSeconds: is 300, must be below the 300 s after which a session ends"
        ],
    );
    check(
        &pool("dynamicPoolConfiguration: { lifecycleConfiguration: { suspendedForInSeconds: 0 } }"),
        &expect![
            "pools[0].spec.dynamicPoolConfiguration.lifecycleConfiguration.suspendedForInSeconds: is 0, must be from 1 to 31536000"
        ],
    );
    check(
        &pool("dynamicPoolConfiguration: { lifecycleConfiguration: { lifecycleType: OnContainerExit } }"),
        &expect![
            "pools[0].spec.dynamicPoolConfiguration.lifecycleConfiguration.lifecycleType: is OnContainerExit, which is for CustomContainer only"
        ],
    );
    check(
        &pool("scaleConfiguration: { maxConcurrentSessions: 0 }"),
        &expect!["pools[0].spec.scaleConfiguration.maxConcurrentSessions: is 0, must be from 1 to 100000"],
    );
    check(
        &pool("scaleConfiguration: { maxConcurrentSessions: 1, readySessionInstances: 2 }"),
        &expect!["pools[0].spec.scaleConfiguration.readySessionInstances: is 2, must be from 0 to 1"],
    );
    check(
        &pool("scaleConfiguration: { readySessionInstances: 8, maxReadySessionInstances: 4 }"),
        &expect!["pools[0].spec.scaleConfiguration.maxReadySessionInstances: is 4, must be from 8 to 250"],
    );
    check(
        &pool("dynamicPoolConfiguration: { lifecycleConfiguration: { cooldownPeriodInSeconds: 0 } }"),
        &expect![
            "pools[0].spec.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds: is 0, must be from 1 to 31536000"
        ],
    );
    check(
        &pool("resources: { memory: 1Mi }"),
        &expect!["pools[0].spec.resources.memory: is 1Mi, must be from 64Mi to 16Ti"],
    );
    check(
        &pool("resources: { cpu: .nan }"),
        &expect!["pools[0].spec.resources.cpu: is NaN, must be from 0.01 to 1024"],
    );
    check(
        &pool("execution: { outputLimit: 1Ti }"),
        &expect!["pools[0].spec.execution.outputLimit: is 1Ti, must be from 1Ki to 64Mi"],
    );
    check(
        &pool("env: [ { name: 'A=B', value: c } ]"),
        &expect![[r#"pools[0].spec.env[0]: "A=B" is not the name of an environment variable"#]],
    );
    check(&pool("image: ../../etc"), &expect![[r#"pools[0].spec.image: "../../etc" is not the name of an image"#]]);
    check(
        "pools: [ { metadata: { name: Upper }, spec: { containerType: Shell } } ]",
        &expect![[
            r#"pools[0].metadata.name: a pool's name has 1 to 63 characters, begins with a letter a-z and goes on with a-z, 0-9 and '-'; this one is "Upper""#
        ]],
    );
    check(
        "pools: [ { metadata: { name: a }, spec: { containerType: Shell } }, { metadata: { name: a }, spec: { containerType: Shell } } ]",
        &expect!["pools[1].metadata.name: a is already the name of pools[0]"],
    );
    check("https: { certificate: /c.pem }", &expect!["https.key: is missing; certificate and key go together"]);
    check("https: { listen: '127.0.0.1:7300' }", &expect!["https.listen: 127.0.0.1:7300 is already taken by listen"]);
    check(
        "auth: { apiKeys: [ { name: ci, sha256: short } ] }",
        &expect![[
            r#"auth.apiKeys[0].sha256: is not 64 hexadecimal digits; make it with: printf %s "$KEY" | sha256sum"#
        ]],
    );
    check(
        "auth: { issuers: [ { issuer: somewhere } ] }",
        &expect![[r#"auth.issuers[0].issuer: "somewhere" is not an http or https URL"#]],
    );
    check(
        "auth: { issuers: [ { issuer: 'https://i', audiences: [] } ] }",
        &expect!["auth.issuers[0].audiences: there must be one at least, or every token would be good"],
    );
    check(
        "auth: { issuers: [ { issuer: 'https://i', console: { clientId: '' } } ] }",
        &expect!["auth.issuers[0].console.clientId: is empty"],
    );
    check(
        "auth: { issuers: [ { issuer: 'https://i', console: { clientId: a, scope: profile } } ] }",
        &expect!["auth.issuers[0].console.scope: must have the word openid in it"],
    );
}

#[test]
fn the_effective_settings_can_be_used_as_a_file() {
    let https = Https { listen: default_https_listen(), certificate: None, key: None };
    let mut settings = Settings { https: Some(https), ..Settings::default() };
    settings.pools[0].spec.resources.memory = Size(3 << 29);
    let yaml = serde_norway::to_string(&settings).unwrap();
    assert_eq!(Settings::parse(&yaml).unwrap(), settings);
    let json = serde_json::to_string(&settings).unwrap();
    assert_eq!(Settings::parse(&json).unwrap(), settings);
}

#[test]
fn secrets_are_not_shown() {
    let mut settings = Settings::default();
    let secret = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
    settings.auth.api_keys.push(ApiKeySettings {
        name: "ci".into(),
        sha256: secret.into(),
        role: RoleName::Executor,
        pools: None,
    });
    settings.pools[0].spec.env.push(EnvVariable { name: "TOKEN".into(), value: "hunter2".into() });
    let shown = serde_norway::to_string(&settings.without_secrets()).unwrap();
    assert!(!shown.contains(secret) && !shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("TOKEN"), "{shown}");
}

#[test]
fn a_shell_may_run_longer_than_code() {
    let settings = Settings::default();
    let longest: Vec<_> = settings
        .pools
        .iter()
        .map(|pool| pool.to_spec("/images/x".into(), &ImageConfig::default()).unwrap().max_timeout.as_secs())
        .collect();
    assert_eq!(longest, [220, 220, 3600]);
    assert_eq!(settings.pools[0].to_spec("/x".into(), &ImageConfig::default()).unwrap().limits, Limits::default());
}

#[test]
fn tenants_are_checked() {
    let digest = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
    check("tenants: [{ name: acme }, { name: default, weight: 3, quota: { sessions: 5 } }]", &expect!["fine"]);
    check(
        "tenants: [{ name: Acme }]",
        &expect![[
            r#"tenants[0].name: a tenant's name has 1 to 63 characters, begins with a letter a-z and goes on with a-z, 0-9 and '-'; this one is "Acme""#
        ]],
    );
    check("tenants: [{ name: a }, { name: a }]", &expect!["tenants[1].name: a is already the name of tenants[0]"]);
    check("tenants: [{ name: a, weight: 0 }]", &expect!["tenants[0].weight: is 0, must be from 1 to 1000"]);
    check(
        "tenants: [{ name: a, quota: { sessions: 0 } }]",
        &expect!["tenants[0].quota.sessions: is 0, must be from 1 to 1000000"],
    );
    check(
        "tenants: [{ name: a, tokens: [{ issuer: 'https://x' }] }]",
        &expect!["tenants[0].tokens[0].issuer: https://x is not one of auth.issuers, nor https://sandpool.local"],
    );
    check(
        "tenants: [{ name: a, tokens: [{ issuer: 'https://sandpool.local', claim: sub }] }]",
        &expect!["tenants[0].tokens[0].value: is missing; claim and value go together"],
    );
    check(
        "tenants: [{ name: default, tokens: [{ issuer: 'https://sandpool.local' }] }]",
        &expect![
            "tenants[0]: takes no keys and no tokens: it has all that no other tenant claims, and keys under auth.apiKeys"
        ],
    );
    let key = format!("apiKeys: [{{ name: k, sha256: {digest} }}]");
    check(
        &format!("tenants: [{{ name: a, {key} }}, {{ name: b, {key} }}]"),
        &expect!["tenants[1].apiKeys[0].sha256: is that of tenants[0].apiKeys[0] too: a key has one owner"],
    );
    check(
        &format!("auth: {{ {key} }}\ntenants: [{{ name: a, {key} }}]"),
        &expect!["tenants[0].apiKeys[0].sha256: is that of auth.apiKeys[0] too: a key has one owner"],
    );
}
