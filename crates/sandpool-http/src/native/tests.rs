use std::collections::BTreeSet;

use super::documented;

#[test]
fn no_method_of_a_path_is_there_twice() {
    let all = documented();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}
