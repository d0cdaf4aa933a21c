//! A new caller gets nothing stale while the server answers, and waits for nothing that does not come.

use super::*;
use crate::cache::jwt::{JwtKey, JwtToken};
use crate::sync::JwtError;

fn changed(entry: &Arc<Entry>) -> Arc<Entry> {
    let mut changed = Entry::clone(entry);
    changed.revision_number += 1;
    changed.dns_names = vec!["new".into()];
    Arc::new(changed)
}

impl Fixture {
    /// An entry that was changed after its SVID was issued: the entry, and the certificate of before.
    fn stale(&self) -> (Arc<Entry>, Vec<u8>) {
        let made = self.entry("a", "/a");
        let svid = self.svid(&made);
        let before = svid.chain[0].to_vec();
        self.context.gate.cache.restore(vec![svid]);
        let changed = changed(&made);
        self.context.gate.cache.apply(Delta {
            entries: vec![Arc::clone(&changed)],
            ..Delta::default()
        });
        (changed, before)
    }

    async fn fetch(&self) -> Vec<u8> {
        let mut client = self.client().await;
        let mut stream = client
            .fetch_x509svid(request(X509svidRequest {}))
            .await
            .unwrap()
            .into_inner();
        let message = next(&mut stream).await.unwrap();
        message.svids[0].x509_svid.clone()
    }

    /// A token in the cache, of whose life more than half is over.
    fn aging_token(&self, entry: &Entry) {
        let key = JwtKey::new(&entry.spiffe_id, &["x".into()]);
        let now = SystemClock.now();
        let token = JwtToken {
            token: spiffe::secret::Secret::new("cached".into()),
            issued_at: now - Duration::from_secs(200),
            expires_at: now + Duration::from_secs(100),
            key_id: None,
        };
        self.context.gate.cache.put_jwt(entry, key, Arc::new(token));
    }

    /// The requests for tokens that reach the server, which answers none by itself.
    pub(super) fn hanging_server(&self) -> mpsc::Receiver<JwtRequest> {
        self.connected();
        let (requests, received) = mpsc::channel(4);
        self.requests.send_replace(Some(requests));
        received
    }

    async fn token_for_x(&self) -> Result<String, Status> {
        let options = JwtsvidRequest {
            audience: vec!["x".into()],
            spiffe_id: String::new(),
        };
        let mut client = self.client().await;
        let answer = client.fetch_jwtsvid(request(options)).await?;
        Ok(answer.into_inner().svids[0].svid.clone())
    }
}

#[tokio::test]
async fn after_a_change_of_the_entry_a_fetch_gets_the_new_certificate_only() {
    let f = start(FixtureOptions::default()).await;
    f.connected();
    let (_, before) = f.stale();
    let issue = async {
        f.context.gate.cache.wanting().await;
        let wanted = f.context.gate.cache.take_wanted(10);
        f.context.gate.cache.put_svids(vec![f.svid(&wanted[0])]);
    };
    let (got, ()) = tokio::join!(f.fetch(), issue);
    assert_ne!(got, before);
}

#[tokio::test]
async fn what_is_stale_is_given_out_when_nothing_newer_comes_in_time() {
    let f = start(FixtureOptions::default()).await;
    f.connected();
    let (_, before) = f.stale();
    assert_eq!(f.fetch().await, before);
}

#[tokio::test]
async fn what_is_stale_is_given_out_at_once_when_the_server_refuses_or_is_away() {
    let f = start(FixtureOptions::default()).await;
    f.connected();
    let (_, before) = f.stale();
    let refuse = async {
        f.context.gate.cache.wanting().await;
        f.context.gate.cache.take_wanted(10);
        f.context.gate.cache.refused(&["a".into()]);
    };
    let (got, ()) = tokio::join!(f.fetch(), refuse);
    assert_eq!(got, before);
    f.status.send_modify(|status| status.connected = false);
    assert_eq!(f.fetch().await, before);
}

#[tokio::test]
async fn an_identity_that_the_server_refuses_does_not_hold_up_the_others() {
    let f = start(FixtureOptions::default()).await;
    f.connected();
    let made = f.entry("a", "/a");
    f.entry("b", "/b");
    f.issue(&made);
    let refuse = async {
        f.context.gate.cache.wanting().await;
        assert_eq!(f.context.gate.cache.take_wanted(10).len(), 1);
        f.context.gate.cache.refused(&["b".into()]);
    };
    let (_, ()) = tokio::join!(f.fetch(), refuse);
    // Who comes now does not wait for the other one either.
    let callers = crate::testing::selectors(&[&own_uid()]);
    let stream = f
        .context
        .gate
        .cache
        .subscribe(&callers, crate::cache::Purpose::X509Svids);
    let outlook = stream.outlook(streams::COMPLETE_TIMEOUT);
    assert_eq!(outlook, crate::cache::Outlook::Settled);
}

#[tokio::test]
async fn with_a_server_that_hangs_the_cached_token_comes_and_its_renewal_goes_on() {
    let f = start(FixtureOptions::default()).await;
    let mut requests = f.hanging_server();
    let made = f.entry("a", "/a");
    f.aging_token(&made);
    assert_eq!(f.token_for_x().await.unwrap(), "cached");
    let renewal = requests.try_recv().unwrap();
    assert_eq!(renewal.entry.id, made.id);
}

fn fresh_token() -> Arc<JwtToken> {
    let now = SystemClock.now();
    Arc::new(JwtToken {
        token: spiffe::secret::Secret::new("fresh".into()),
        issued_at: now,
        expires_at: now + Duration::from_secs(300),
        key_id: None,
    })
}

#[tokio::test]
async fn a_server_that_answers_renews_an_aging_token_for_its_caller() {
    let f = start(FixtureOptions::default()).await;
    let mut requests = f.hanging_server();
    let made = f.entry("a", "/a");
    f.aging_token(&made);
    let answer = async {
        let request = requests.recv().await.unwrap();
        request.reply.send(Ok(fresh_token())).unwrap();
    };
    let (got, ()) = tokio::join!(f.token_for_x(), answer);
    assert_eq!(got.unwrap(), "fresh");
}

#[tokio::test]
async fn a_caller_waits_as_long_as_the_operator_says_for_the_renewal_of_an_aging_token() {
    let f = start(FixtureOptions {
        jwt_svid_cache_hit_timeout: Some(LONG),
        ..FixtureOptions::default()
    })
    .await;
    let mut requests = f.hanging_server();
    let made = f.entry("a", "/a");
    f.aging_token(&made);
    let answer = async {
        let request = requests.recv().await.unwrap();
        // Longer than a caller waits by default.
        tokio::time::sleep(streams::RENEWAL_TIMEOUT * 2).await;
        request.reply.send(Ok(fresh_token())).unwrap();
    };
    let (got, ()) = tokio::join!(f.token_for_x(), answer);
    assert_eq!(got.unwrap(), "fresh");
}

#[tokio::test]
async fn a_token_whose_entry_is_withdrawn_while_it_is_issued_is_not_delivered() {
    let f = start(FixtureOptions::default()).await;
    let mut requests = f.hanging_server();
    f.entry("a", "/a");
    let answer = async {
        let request = requests.recv().await.unwrap();
        f.remove("a");
        request.reply.send(Ok(fresh_token())).unwrap();
    };
    let (got, ()) = tokio::join!(f.token_for_x(), answer);
    assert_eq!(got.unwrap_err().code(), Code::PermissionDenied);
    // Beside another identity, only the withdrawn one is left out.
    f.entry("a", "/a");
    f.entry("b", "/b");
    let answer = async {
        for _ in 0..2 {
            let request = requests.recv().await.unwrap();
            if &*request.entry.id == "a" {
                f.remove("a");
            }
            request.reply.send(Ok(fresh_token())).unwrap();
        }
    };
    let mut client = f.client().await;
    let options = JwtsvidRequest {
        audience: vec!["x".into()],
        spiffe_id: String::new(),
    };
    let (got, ()) = tokio::join!(client.fetch_jwtsvid(request(options)), answer);
    let svids = got.unwrap().into_inner().svids;
    assert_eq!(svids.len(), 1);
    assert_eq!(svids[0].spiffe_id, "spiffe://example.org/b");
}

#[tokio::test]
async fn a_workload_learns_the_code_and_the_reason_of_a_server_without_jwt_svids() {
    let f = start(FixtureOptions::default()).await;
    let mut requests = f.hanging_server();
    f.entry("a", "/a");
    for (error, code) in [
        (
            JwtError::NotOffered("JWT-SVIDs are disabled".into()),
            Code::Unimplemented,
        ),
        (
            JwtError::Unavailable("no answer in time".into()),
            Code::Unavailable,
        ),
    ] {
        let because = error.to_string();
        let answer = async {
            let request = requests.recv().await.unwrap();
            request.reply.send(Err(error)).unwrap();
        };
        let (got, ()) = tokio::join!(f.token_for_x(), answer);
        let status = got.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(&because), "{status}");
    }
}
