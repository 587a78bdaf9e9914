use super::*;
use proptest::prelude::*;

fn told(method: &Method, path: &str) -> String {
    let Some(target) = target(path) else { return "no pool".to_owned() };
    let shown = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let session = target.identifier.as_ref().map(shown).map_or_else(String::new, |text| format!(" of {text}"));
    let what = match fit(method, &target.below) {
        Fit::Route(route, held) => {
            format!("{} [{}]", route.path, held.iter().map(shown).collect::<Vec<_>>().join("|"))
        }
        Fit::Methods(methods) => format!("only {methods:?}"),
        Fit::Nothing => "nothing".to_owned(),
    };
    format!("{}{session}: {what}", target.pool)
}

#[test]
fn item_3_every_way_to_write_a_path_leads_to_its_route() {
    const AZURE: &str = "/subscriptions/s/resourceGroups/r/sessionPools/Calc";
    for (method, below, expected) in [
        ("POST", "/executions", "executions []"),
        ("POST", "//code/execute", "code/execute []"),
        ("POST", "/code//execute/", "code/execute []"),
        ("POST", "/CODE/Execute", "code/execute []"),
        ("POST", "/execute", "execute []"),
        ("POST", "/python/execute", "python/execute []"),
        ("GET", "/executions/9a0c", "executions/{id} [9a0c]"),
        ("GET", "/execute/9a0c", "execute/{id} [9a0c]"),
        ("GET", "/code/execute/9a0c", "code/execute/{id} [9a0c]"),
        ("POST", "/files", "files []"),
        ("POST", "/files/upload", "files/upload []"),
        ("POST", "/files:uploadFile", "files:uploadFile []"),
        ("POST", "/files/a%20b.txt:uploadFile", "files/{name}:uploadFile [a b.txt]"),
        ("POST", "/files/a.txt:downloadfile", "files/{name}:downloadFile [a.txt]"),
        ("GET", "//files", "files []"),
        ("GET", "/files/content/a.txt", "files/content/{name...} [a.txt]"),
        ("GET", "/files/content//mnt/data/a.txt", "files/content/{name...} [mnt|data|a.txt]"),
        ("GET", "/files/a.txt/content", "files/{name...}/content [a.txt]"),
        ("GET", "/files/content/content", "files/content/{name...} [content]"),
        ("GET", "/files/content", "files/{name...} [content]"),
        ("HEAD", "/files/a%2525.txt", "files/{name...} [a%25.txt]"),
        ("DELETE", "/files/a%2Fb", "files/{name...} [a/b]"),
        ("DELETE", "/session", "session []"),
        ("GET", "/LISTsessions", "listSessions []"),
        ("POST", "/.management/stopSession", ".management/stopSession []"),
        ("PUT", "/session", "only [GET, DELETE]"),
        ("GET", "/code/execute", "only [POST]"),
        ("POST", "/mcp", "nothing"),
        ("GET", "", "nothing"),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(told(&method, &format!("{AZURE}{below}")), format!("calc: {expected}"), "{method} {below}");
    }
}

#[test]
fn a_pool_is_found_under_each_prefix_and_nowhere_else() {
    for (path, expected) in [
        ("/pools/calc/execute", "calc: execute []"),
        ("//POOLS//calc//execute", "calc: execute []"),
        ("/subscriptions/s/resourcegroups/r/providers/microsoft.app/sessionpools/calc/execute", "calc: execute []"),
        ("/pools/calc/identifier/a%2Fb%26/code/execute", "calc of a/b&: code/execute []"),
        ("/pools/calc/identifier/abcd/files/content/x", "calc of abcd: only [GET, DELETE]"),
        ("/pools/calc/identifier/abcd", "calc: nothing"),
        ("/subscriptions/s/resourceGroups/r/providers/Other/sessionPools/calc/execute", "no pool"),
        ("/sessionPools/calc/execute", "no pool"),
        ("/pools", "no pool"),
        ("/", "no pool"),
    ] {
        assert_eq!(told(&Method::POST, path), expected, "{path}");
    }
}

#[test]
fn links_begin_with_what_the_caller_wrote() {
    let target = target("//pools//a%2db/executions").unwrap();
    assert_eq!((target.prefix.as_str(), target.pool.as_str()), ("/pools/a%2db", "a-b"));
}

proptest! {
    #[test]
    fn any_path_is_taken_apart(path in "(/|/pools/a|/[a-z:.%]{0,9}){0,6}.{0,20}") {
        if let Some(target) = target(&path) {
            fit(&Method::GET, &target.below);
            fit(&Method::POST, &target.below);
        }
    }
}
