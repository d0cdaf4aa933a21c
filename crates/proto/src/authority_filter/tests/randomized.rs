//! Requests of every framing and encoding, and bytes that are no requests.

use http::HeaderMap;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest,
};

use super::{
    super::{CONTINUATION, END_HEADERS, Frame, HAS_PRIORITY, PADDED},
    DATA, END_STREAM, Form, METHOD_SCHEME_PATH, NameForm, field, headers, rewritten,
    rewritten_in_parts, served, start,
};

fn any_form() -> impl Strategy<Value = Form> {
    prop_oneof![
        Just(Form::Indexed),
        Just(Form::NotIndexed),
        Just(Form::NeverIndexed)
    ]
}

#[derive(Clone, Debug)]
struct AnyRequest {
    authority: String,
    form: Form,
    spelled: bool,
    coded: bool,
    others: Vec<(Form, String, String, bool)>,
    padding: Option<u8>,
    priority: bool,
    split: Option<prop::sample::Index>,
    body: Vec<u8>,
}

fn any_request() -> impl Strategy<Value = AnyRequest> {
    let authority = prop_oneof![
        "[a-z0-9.:%/_@-]{1,40}",
        "[ -~]{1,40}",
        Just("localhost".to_owned())
    ];
    let other = (any_form(), "x-[a-z]{1,8}", "[ -~]{0,300}", any::<bool>());
    let others = prop::collection::vec(other, 0..6);
    let framing = (
        prop::option::of(any::<u8>()),
        any::<bool>(),
        prop::option::of(any::<prop::sample::Index>()),
    );
    let body = prop::collection::vec(any::<u8>(), 0..200);
    (
        authority,
        any_form(),
        any::<bool>(),
        any::<bool>(),
        others,
        framing,
        body,
    )
        .prop_map(
            |(authority, form, spelled, coded, others, (padding, priority, split), body)| {
                AnyRequest {
                    authority,
                    form,
                    spelled,
                    coded,
                    others,
                    padding,
                    priority,
                    split,
                    body,
                }
            },
        )
}

impl AnyRequest {
    fn put(&self, stream: u32, out: &mut Vec<u8>) {
        let mut block = METHOD_SCHEME_PATH.to_vec();
        let name = if self.spelled {
            NameForm::Spelled {
                huffman: self.coded,
            }
        } else {
            NameForm::Index(1)
        };
        field(
            self.form,
            name,
            ":authority",
            &self.authority,
            self.coded,
            &mut block,
        );
        for (form, name, value, coded) in &self.others {
            field(
                *form,
                NameForm::Spelled { huffman: *coded },
                name,
                value.trim(),
                *coded,
                &mut block,
            );
        }
        let at = self
            .split
            .map_or(block.len(), |index| index.index(block.len()));
        let (first, rest) = block.split_at(at);
        let mut flags = if self.split.is_some() { 0 } else { END_HEADERS };
        let mut payload = Vec::new();
        if let Some(padding) = self.padding {
            flags |= PADDED;
            payload.push(padding);
        }
        if self.priority {
            flags |= HAS_PRIORITY;
            payload.extend([0, 0, 0, 0, 1]);
        }
        payload.extend_from_slice(first);
        payload.resize(
            payload.len() + usize::from(self.padding.unwrap_or_default()),
            0,
        );
        headers(flags, stream, &payload, out);
        if self.split.is_some() {
            Frame::put(CONTINUATION, END_HEADERS, stream, [rest, &[]], out);
        }
        Frame::put(DATA, END_STREAM, stream, [&self.body, &[]], out);
    }

    fn expected(&self) -> String {
        if http::uri::Authority::try_from(self.authority.as_str()).is_ok() {
            return self.authority.clone();
        }
        let legal = |c: char| {
            if c.is_ascii_alphanumeric() || "-._~".contains(c) {
                c
            } else {
                '-'
            }
        };
        self.authority.chars().map(legal).collect()
    }

    fn expected_headers(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (_, name, value, _) in &self.others {
            let name = http::HeaderName::try_from(name.as_str()).unwrap();
            map.append(name, value.trim().parse().unwrap());
        }
        map
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_server_sees_each_request_with_a_legal_authority(requests in prop::collection::vec(any_request(), 1..8)) {
        let mut bytes = start();
        for (number, request) in (0..).zip(&requests) {
            request.put(number * 2 + 1, &mut bytes);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (seen, _) = runtime.block_on(served(bytes, requests.len()));
        prop_assert_eq!(seen.len(), requests.len());
        for ((authority, headers), request) in seen.iter().zip(&requests) {
            prop_assert_eq!(authority.clone(), Some(request.expected()));
            prop_assert_eq!(headers, &request.expected_headers());
        }
    }

    #[test]
    fn nothing_changes_when_every_authority_is_legal(requests in prop::collection::vec(any_request(), 1..8)) {
        let mut bytes = start();
        for (number, mut request) in (0..).zip(requests) {
            request.authority = request.expected();
            request.put(number * 2 + 1, &mut bytes);
        }
        prop_assert_eq!(rewritten(&bytes), bytes);
    }

    #[test]
    fn the_outcome_does_not_depend_on_how_reads_are_cut(
        requests in prop::collection::vec(any_request(), 1..5), part in 1_usize..600
    ) {
        let mut bytes = start();
        for (number, request) in (0..).zip(&requests) {
            request.put(number * 2 + 1, &mut bytes);
        }
        prop_assert_eq!(rewritten_in_parts(&bytes, part), rewritten(&bytes));
    }

    #[test]
    fn any_bytes_are_taken_and_none_are_lost(
        noise in prop::collection::vec(any::<u8>(), 0..2000), part in 1_usize..600
    ) {
        let mut bytes = start();
        bytes.extend_from_slice(&noise);
        prop_assert_eq!(rewritten_in_parts(&bytes, part), rewritten(&bytes));
        prop_assert_eq!(rewritten(&noise), noise);
    }
}
