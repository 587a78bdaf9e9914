use super::*;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn policy(mode: Mode, allow: &[&str], deny: &[&str]) -> wire::Policy {
    wire::Policy { mode, allow: texts(allow), deny: texts(deny), ..wire::Policy::default() }
}

fn rules(pool: &wire::Policy, session: Option<&wire::Policy>) -> Rules {
    Rules::parse(pool, session).unwrap()
}

fn judged(rules: &Rules, text: &str) -> Result<(), Reason> {
    let (target, port) = destination(text).unwrap();
    rules.judge(&target, port)
}

#[test]
fn an_allow_list_allows_what_it_names() {
    let list = ["example.com", "*.pythonhosted.org", "git.example.net:9418", "203.0.113.7:8080", "[2606:4700::/32]:*"];
    let rules = rules(&policy(Mode::AllowList, &list, &[]), None);
    for text in [
        "example.com:443",
        "EXAMPLE.com.:80",
        "files.pythonhosted.org:443",
        "a.b.pythonhosted.org:443",
        "git.example.net:9418",
        "203.0.113.7:8080",
        "[2606:4700::1]:22",
    ] {
        assert_eq!(judged(&rules, text), Ok(()), "{text}");
    }
    for text in [
        "example.com:22",
        "www.example.com:443",
        "pythonhosted.org:443",
        "evilpythonhosted.org:443",
        "git.example.net:443",
    ] {
        assert_eq!(judged(&rules, text), Err(Reason::NotListed), "{text}");
    }
    for text in ["203.0.113.7:80", "203.0.113.8:8080", "[2607::1]:443"] {
        assert_eq!(judged(&rules, text), Err(Reason::AddressNotListed), "{text}");
    }
}

#[test]
fn what_is_denied_is_denied_whatever_else_is_said() {
    let open = rules(&policy(Mode::Open, &[], &["*.evil.net", "example.com", "198.51.100.0/24", "*:25"]), None);
    for text in ["a.evil.net:443", "example.com:1", "198.51.100.9:443", "mail.example.org:25"] {
        assert_eq!(judged(&open, text), Err(Reason::Denied), "{text}");
    }
    assert_eq!(judged(&open, "evil.net:443"), Ok(()));
    // Also where a name leads.
    assert_eq!(open.judge_address("198.51.100.9".parse().unwrap(), 443), Err(Reason::Denied));
    let list = rules(&policy(Mode::AllowList, &["*.example.com"], &["secret.example.com"]), None);
    assert_eq!(judged(&list, "secret.example.com:443"), Err(Reason::Denied));
    assert!(!list.knows(&Host::parse("secret.example.com").unwrap()));
    assert!(list.knows(&Host::parse("a.example.com").unwrap()));
}

#[test]
fn without_rules_nothing_is_reached() {
    let rules = Rules::default();
    assert_eq!(judged(&rules, "example.com:443"), Err(Reason::NoEgress));
    assert!(!rules.knows(&Host::parse("example.com").unwrap()));
    assert!(!rules.is_open());
}

#[test]
fn a_session_only_takes_away() {
    let mut wide = policy(Mode::Open, &[], &[]);
    wide.allow_addresses = texts(&["0.0.0.0/0"]);
    wide.hosts = [("example.org".to_owned(), vec!["10.0.0.1".parse().unwrap()])].into();
    let narrow = policy(Mode::AllowList, &["example.com", "example.net"], &["example.net"]);
    let rules = rules(&narrow, Some(&wide));
    assert_eq!(judged(&rules, "example.com:443"), Ok(()));
    assert_eq!(judged(&rules, "example.org:443"), Err(Reason::NotListed));
    assert_eq!(judged(&rules, "example.net:443"), Err(Reason::Denied));
    assert!(!rules.is_open());
    assert!(rules.judge_address("10.0.0.1".parse().unwrap(), 443).is_err());
    assert!(rules.addresses_of(&Host::parse("example.org").unwrap()).is_none());
    let nothing = Rules::parse(&policy(Mode::Open, &[], &[]), Some(&policy(Mode::None, &[], &[])));
    assert_eq!(judged(&nothing.unwrap(), "example.com:443"), Err(Reason::NoEgress));
}

#[test]
fn an_address_that_is_not_public_is_lifted_by_the_pool_alone() {
    let mut pool = policy(Mode::AllowList, &["inside.example.com", "10.1.2.3"], &[]);
    let refused = rules(&pool, None);
    // That a list names it is not enough.
    assert_eq!(judged(&refused, "10.1.2.3:80"), Ok(()));
    let address = "10.1.2.3".parse().unwrap();
    assert_eq!(refused.judge_address(address, 80), Err(Reason::NotPublic(Kind::Private)));
    pool.allow_addresses = texts(&["10.1.2.3"]);
    let lifted = rules(&pool, None);
    assert_eq!(lifted.judge_address(address, 80), Ok(()));
    assert_eq!(lifted.judge_address("::ffff:10.1.2.3".parse().unwrap(), 80), Ok(()));
    assert!(lifted.judge_address("10.1.2.4".parse().unwrap(), 80).is_err());
    assert!(lifted.judge_address("2002:a01:203::".parse().unwrap(), 80).is_err());
}

#[test]
fn a_policy_that_cannot_be_meant_is_an_error() {
    let mut strange = policy(Mode::Open, &[], &[]);
    strange.hosts = [("example.org".to_owned(), Vec::new())].into();
    let mut lifted = policy(Mode::Open, &[], &[]);
    lifted.allow_addresses = texts(&["inside.example.com"]);
    for (policy, expected) in [
        (policy(Mode::AllowList, &[], &[]), "allow: is empty: that is the mode none"),
        (policy(Mode::Open, &["a.com"], &[]), "allow: is for the mode allow-list"),
        (policy(Mode::None, &["a.com"], &[]), "allow: is for the mode allow-list"),
        (policy(Mode::AllowList, &["*"], &[]), "allow: \"*\" allows everything: that is the mode open"),
        (policy(Mode::AllowList, &["a.com:0"], &[]), "allow: \"a.com:0\": a port is a number from 1 to 65535, or *"),
        (policy(Mode::AllowList, &["10.0.0.1/8"], &[]), "allow: \"10.0.0.1/8\" has bits set after its first 8"),
        (strange, "hosts: \"example.org\" has no address"),
        (lifted, "allowAddresses: \"inside.example.com\" is neither an address nor a range of them"),
    ] {
        assert_eq!(Policy::parse(&policy).unwrap_err().to_string(), expected);
    }
    for text in
        ["https://a.com", "a.com/", "a*.com", "*.*.com", "a.com:80-90", "bücher.de", "127.1", "", "*.", "a.com\0"]
    {
        let found = Policy::parse(&policy(Mode::AllowList, &[text], &[]));
        assert!(found.is_err(), "{text:?}");
    }
}
