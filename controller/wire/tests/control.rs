//! The control protocol's JSON is what scripts see: it must not change by accident.

#![allow(clippy::unwrap_used)] // A test's helpers, too, may end the test.

use mosix_wire::control::{Reply, Request};

#[test]
fn requests_have_the_documented_form() {
    for (request, json) in [
        (Request::Status, r#"{"request":"status"}"#),
        (Request::Ps { all: true }, r#"{"request":"ps","all":true}"#),
        (Request::Migrate { pid: 7, target: "home".to_owned() }, r#"{"request":"migrate","pid":7,"target":"home"}"#),
        (Request::Balance { on: false }, r#"{"request":"balance","on":false}"#),
    ] {
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
    }
}

#[test]
fn unknown_fields_are_ignored_and_unknown_words_refused() {
    let newer = r#"{"reply":"placed","node":"n1","why":"idle"}"#;
    assert_eq!(serde_json::from_str::<Reply>(newer).unwrap(), Reply::Placed { node: "n1".to_owned() });
    assert!(serde_json::from_str::<Request>(r#"{"request":"format_disk"}"#).is_err());
}
