//! Slugs, labels, models, variables, URLs.

use crate::{near, oracles::names};
use proptest::prelude::*;

proptest! {
    #[test]
    fn names_follow_contract(text in near("aZ0_-./=:@ \u{0}éCYNODE_")) {
        names::name(&text);
    }

    #[test]
    fn name_lengths_follow_contract(first in "[a-z0-9]", more in "[a-z0-9-]{60,64}|[a-z0-9]{250,260}") {
        names::name(&format!("{first}{more}"));
    }

    #[test]
    fn only_own_variables_are_reserved(name in "CYNODE_(TASK_ID|JOB_ID|WORKSPACE_DIR|ARTIFACTS_DIR|PROMPT)[_1]?") {
        names::name(&name);
    }

    #[test]
    fn accepted_url_can_be_called(text in near("http://[::1]:80/a@?#%\\ é")) {
        names::url(&text);
        names::url(&format!("http://{text}"));
        names::url(&format!("http://box:{text}"));
    }

    #[test]
    fn port_numbers_are_validated(port in prop_oneof!["[0-9]{0,6}", "(0|00080|80|65535|65536|080|\\+80|-1)"], path in "(/[a-z]{0,3}){0,2}") {
        names::url(&format!("http://box:{port}{path}"));
        names::url(&format!("HTTP://[::1]:{port}{path}"));
        names::url(&format!("https://box:{port}{path}"));
        names::url(&format!("http://10.0.0.1:{port}{path}"));
    }

    #[test]
    fn urls_are_bounded(length in 2030usize..2060) {
        let url = format!("http://box/{}", "a".repeat(length - 11));
        prop_assert_eq!(cynode::api::nodes::check_url("/u", &url).is_ok(), length <= 2048);
        names::url(&url);
    }
}
