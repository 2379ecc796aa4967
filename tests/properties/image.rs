//! References of images, and the patterns that allow them.

use crate::{near, oracles::image};
use cynode::api::image::ImageRef;
use proptest::prelude::*;

const COMPONENT: &str = "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}";
const DOMAIN: &str =
    "localhost|[a-z0-9]{1,3}(-[a-z0-9]{1,3}){0,2}\\.[a-zA-Z0-9]{1,3}(:[0-9]{1,5})?|h:[0-9]{1,5}";

/// The parts of a reference, each well-formed.
fn parts() -> impl Strategy<Value = (Option<String>, Vec<String>, Option<String>, Option<String>)> {
    (
        proptest::option::of(DOMAIN),
        proptest::collection::vec(COMPONENT, 1..4),
        proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}"),
        proptest::option::of("sha256:[0-9a-f]{64}"),
    )
}

proptest! {
    #[test]
    fn accepted_images_are_normalised(text in near("ab1.:/@_-A-:// sha256docker.io/localhost")) {
        image::reference(&text);
    }

    #[test]
    fn references_parse_as_docker_does((domain, path, tag, digest) in parts()) {
        let (path_text, tag_text) = (path.join("/"), tag.as_deref().unwrap_or("latest"));
        let mut text = domain.as_ref().map_or_else(String::new, |domain| format!("{domain}/"));
        text.push_str(&path_text);
        if let Some(tag) = &tag {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = &digest {
            text = format!("{text}@{digest}");
        }
        // Without a registry, a first part with a dot would count as the registry.
        prop_assume!(domain.is_some() || path.len() == 1 || !(path[0].contains('.') || path[0] == "localhost"));
        let domain = domain.unwrap_or_else(|| "docker.io".to_owned());
        let library = if domain == "docker.io" && path.len() == 1 { "library/" } else { "" };
        let expected = match digest {
            Some(digest) => format!("{domain}/{library}{path_text}@{digest}"),
            None => format!("{domain}/{library}{path_text}:{tag_text}"),
        };
        let image: ImageRef = text.parse().unwrap();
        prop_assert_eq!(image.as_str(), expected);
        image::reference(&text);
    }

    #[test]
    fn long_reference_is_normalised_or_refused(length in 470usize..520, with_team: bool, with_tag: bool) {
        let team = if with_team { "team/" } else { "" };
        let tag = if with_tag { ":1" } else { "" };
        image::reference(&format!("{team}{}{tag}", "a".repeat(length)));
    }

    #[test]
    fn ambiguous_image_names_are_refused(
        before in "-{1,2}|dir:/|oci:/|docker://|docker-archive:/|docker-daemon:/|containers-storage:\\[|ostree:/|sif:/|[\\x00-\\x20]",
        rest in "[a-z/:.]{0,10}",
    ) {
        let text = before + &rest;
        prop_assert!(text.parse::<ImageRef>().is_err(), "{}", text);
    }

    #[test]
    fn patterns_match_like_reference(
        image in "[ab]{1,4}(/[ab]{1,4})?",
        pattern in prop_oneof!["[ab*/:.]{0,8}", "\\*?[ab*]{0,4}\\*?:latest", "docker.io/[ab*]{0,6}/\\*", "(\\*[a-e]){0,6}\\*?"],
    ) {
        image::pattern(&image, &pattern);
    }
}
