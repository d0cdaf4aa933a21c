use super::*;
use proptest::prelude::*;

fn set(texts: &[&str]) -> SelectorSet {
    texts
        .iter()
        .map(|text| Selector::parse(text).unwrap())
        .collect()
}

#[test]
fn splits_at_the_first_colon() {
    let selector = Selector::parse("k8s:pod-label:app:x").unwrap();
    assert_eq!(
        (selector.kind(), selector.value()),
        ("k8s", "pod-label:app:x")
    );
    assert_eq!(Selector::new("k8s", "pod-label:app:x"), Ok(selector));
}

#[test]
fn refuses_missing_halves_and_colons_in_the_type() {
    assert_eq!(Selector::parse("unix"), Err(SelectorError::NoColon));
    assert_eq!(Selector::parse(":1"), Err(SelectorError::MissingType));
    assert_eq!(Selector::parse("unix:"), Err(SelectorError::MissingValue));
    assert_eq!(Selector::new("", "1"), Err(SelectorError::MissingType));
    assert_eq!(Selector::new("a:b", "1"), Err(SelectorError::ColonInType));
    assert_eq!(Selector::new("a", ""), Err(SelectorError::MissingValue));
    assert_eq!(
        Selector::new("a", &"x".repeat(MAX_SELECTOR_LEN)),
        Err(SelectorError::TooLong)
    );
}

#[test]
fn orders_by_type_then_value() {
    let sorted = set(&["b:1", "a-x:2", "a:3", "a:1", "a:1"]);
    let texts: Vec<_> = sorted.iter().map(Selector::as_str).collect();
    assert_eq!(texts, ["a:1", "a:3", "a-x:2", "b:1"]);
}

#[test]
fn sets_compare_as_sets() {
    let (small, large, other) = (
        set(&["a:1", "c:1"]),
        set(&["c:1", "b:1", "a:1"]),
        set(&["d:1"]),
    );
    assert!(small.is_subset_of(&large) && large.is_superset_of(&small));
    assert!(!large.is_subset_of(&small) && !other.is_subset_of(&large));
    assert!(set(&[]).is_subset_of(&small) && small.is_subset_of(&small));
    assert!(small.intersects(&large) && !small.intersects(&other) && !set(&[]).intersects(&small));
    assert_eq!(serde_json::to_string(&small).unwrap(), r#"["a:1","c:1"]"#);
    assert_eq!(
        serde_json::from_str::<SelectorSet>(r#"["c:1","a:1","a:1"]"#).unwrap(),
        small
    );
}

proptest! {
    #[test]
    fn set_operations_agree_with_the_standard_library(a in "[abc]{0,6}", b in "[abcd]{0,6}") {
        let of = |text: &str| -> Vec<Selector> { text.chars().map(|c| Selector::new("t", &c.to_string()).unwrap()).collect() };
        let (left, right) = (SelectorSet::from(of(&a)), SelectorSet::from(of(&b)));
        let (l, r): (std::collections::BTreeSet<_>, std::collections::BTreeSet<_>) = (of(&a).into_iter().collect(), of(&b).into_iter().collect());
        prop_assert_eq!(left.is_subset_of(&right), l.is_subset(&r));
        prop_assert_eq!(left.intersects(&right), !l.is_disjoint(&r));
        prop_assert_eq!(left.len(), l.len());
    }
}
