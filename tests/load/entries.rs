//! Registration entries of the driver.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::TRUST_DOMAIN;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, CountEntriesRequest, GetAuthorizedEntriesRequest, ListEntriesRequest,
};
use proto::spire::api::types::{Entry, EntryMask, Selector, Spiffeid};
use tonic::transport::Channel;

use crate::deployment::{ENTRIES_OF_AGENT, LoadDeployment};

fn spiffe_id(path: String) -> Option<Spiffeid> {
    Some(Spiffeid {
        trust_domain: TRUST_DOMAIN.to_owned(),
        path,
    })
}

/// An entry for a user that nobody is.
pub(crate) fn numbered(parent: &str, number: usize) -> Entry {
    Entry {
        spiffe_id: spiffe_id(format!("/workload{parent}/{number}")),
        parent_id: spiffe_id(parent.to_owned()),
        selectors: vec![
            Selector {
                r#type: "unix".to_owned(),
                value: format!("uid:{}", 100_000 + number),
            },
            Selector {
                r#type: "unix".to_owned(),
                value: format!("gid:{}", 100_000 + number),
            },
        ],
        ..Entry::default()
    }
}

/// An entry for the user that runs the driver.
pub(crate) fn own(parent: &str, path: &str) -> Result<Entry> {
    let user = harness::deployment::own_user();
    let value = user
        .strip_prefix("unix:")
        .context("a unix selector")?
        .to_owned();
    Ok(Entry {
        spiffe_id: spiffe_id(path.to_owned()),
        parent_id: spiffe_id(parent.to_owned()),
        selectors: vec![Selector {
            r#type: "unix".to_owned(),
            value,
        }],
        ..Entry::default()
    })
}

/// Creates them in one call and returns their IDs.
pub(crate) async fn create(admin: &Channel, entries: Vec<Entry>) -> Result<Vec<String>> {
    let mask = EntryMask {
        spiffe_id: true,
        ..EntryMask::default()
    };
    let request = BatchCreateEntryRequest {
        entries,
        output_mask: Some(mask),
    };
    let results = EntryClient::new(admin.clone())
        .batch_create_entry(request)
        .await?
        .into_inner()
        .results;
    let mut ids = Vec::new();
    for result in results {
        match (result.status, result.entry) {
            (Some(status), Some(entry)) if status.code == 0 => ids.push(entry.id),
            (status, _) => bail!("entry not created: {status:?}"),
        }
    }
    Ok(ids)
}

/// SPIRE's server learns of its own entries every five seconds.
pub(crate) async fn wait_until_authorized(deployment: &LoadDeployment) -> Result<()> {
    for agent in &deployment.agents {
        let channel = agent.channels.first().context("a channel")?;
        let mut have = 0;
        for _ in 0..300 {
            let request = GetAuthorizedEntriesRequest::default();
            let answer = EntryClient::new(channel.clone())
                .get_authorized_entries(request)
                .await?;
            have = answer.into_inner().entries.len();
            // The alias of the agent is among them.
            if have >= ENTRIES_OF_AGENT {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if have < ENTRIES_OF_AGENT {
            bail!("an agent has {have} entries");
        }
    }
    Ok(())
}

pub(crate) async fn count(admin: &Channel) -> Result<usize> {
    let answer = EntryClient::new(admin.clone())
        .count_entries(CountEntriesRequest::default())
        .await?;
    Ok(usize::try_from(answer.into_inner().count)?)
}

/// Reads all pages of a thousand, whole entries, and counts them.
pub(crate) async fn list(admin: &Channel) -> Result<usize> {
    let mut client = EntryClient::new(admin.clone()).max_decoding_message_size(64 << 20);
    let mut token = String::new();
    let mut count = 0;
    loop {
        let request = ListEntriesRequest {
            page_size: 1000,
            page_token: token,
            ..ListEntriesRequest::default()
        };
        let page = client.list_entries(request).await?.into_inner();
        count += page.entries.len();
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(count);
        }
    }
}
