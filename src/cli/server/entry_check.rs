//! What is likely a slip in an entry: a selector that no attestor gives, a parent that no agent has, a lifetime that no
//! authority can grant. The server takes all of these, since an attestor or a node may come later. Natively they are
//! refused unless `--allow-unknown` says that they are meant; `spire-server` warns.

use config::closest;
use config::fault::{Code, Fault, Faults};
use proto::spire::api::server::agent::v1::GetAgentRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::entry::v1::list_entries_request::Filter;
use proto::spire::api::server::localauthority::v1::GetX509AuthorityStateRequest;
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use proto::spire::api::types::{AgentMask, Entry, Selector, Spiffeid};
use spiffe::clock::unix_seconds;
use tonic::transport::Channel;

use super::agent_list;
use super::entry::Written;
use super::entry_list::{Part, matching};
use crate::cli::args::Args;
use crate::cli::context::{Context, Frontend};
use crate::cli::error::{Batch, CliError};
use crate::cli::flag::Flag;
use crate::cli::output::{self, Output};
use crate::cli::{ids, timefmt};

pub(super) const ALLOW_UNKNOWN: Flag<bool> = Flag::switch(
    "allowUnknown",
    "allow-unknown",
    "Take selectors and parent IDs that nothing is known of, such as those of an external plugin",
)
.natively();

/// The keys of an attestor's selectors, and whether it can have no others.
struct Attestor {
    name: &'static str,
    keys: &'static [&'static str],
    complete: bool,
}

const fn of_nodes(name: &'static str) -> Attestor {
    Attestor {
        name,
        keys: &[],
        complete: false,
    }
}

/// The attestors and SVID stores that there are, here and in SPIRE: their names are the types of selectors.
const ATTESTORS: [Attestor; 20] = [
    Attestor {
        name: "unix",
        keys: &[
            "uid",
            "user",
            "gid",
            "group",
            "supplementary_gid",
            "supplementary_group",
            "path",
            "sha256",
        ],
        complete: true,
    },
    Attestor {
        name: "k8s",
        keys: &[
            "ns",
            "sa",
            "container-image",
            "container-name",
            "node-name",
            "pod-label",
            "pod-owner",
            "pod-owner-uid",
            "pod-uid",
            "pod-name",
            "pod-image",
            "pod-image-count",
            "pod-init-image",
            "pod-init-image-count",
        ],
        complete: false,
    },
    Attestor {
        name: "docker",
        keys: &["label", "env", "image_id", "image_config_digest"],
        complete: false,
    },
    Attestor {
        name: "systemd",
        keys: &["id", "fragment_path"],
        complete: true,
    },
    of_nodes("windows"),
    of_nodes("spiffe_id"),
    of_nodes("join_token"),
    of_nodes("aws_iid"),
    of_nodes("azure_msi"),
    of_nodes("azure_imds"),
    of_nodes("gcp_iit"),
    of_nodes("http_challenge"),
    of_nodes("k8s_psat"),
    of_nodes("k8s_sat"),
    of_nodes("sshpop"),
    of_nodes("tpm_devid"),
    of_nodes("x509pop"),
    of_nodes("aws_secretsmanager"),
    of_nodes("gcp_secretmanager"),
    of_nodes("hashicorp_vault"),
];

/// Natively refuses what is likely a slip; nothing has been sent that changes anything.
pub(super) async fn refuse(
    context: &Context,
    channel: &Channel,
    args: &Args,
    entries: &[Entry],
) -> Result<(), CliError> {
    if context.frontend == Frontend::Spire || args.get(ALLOW_UNKNOWN) {
        return Ok(());
    }
    let mut faults = selector_faults(entries);
    faults.extend(past_faults(entries, unix_seconds(context.clock.now())));
    faults.extend(parent_faults(channel, entries).await?);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(CliError::Faults(Box::new(Faults(faults))))
    }
}

/// The output of `entry create` and `entry update`, and what is likely a slip in the entries that the server took.
pub(super) async fn written(
    context: &Context,
    channel: &Channel,
    mut output: Output,
    entries: Vec<Entry>,
    failure: Option<Batch>,
) -> Output {
    output.partial_failure = failure;
    if output.partial_failure.is_none() {
        warn(context, channel, &entries).await;
        let note = lifetime_note(context, channel, &entries).await;
        output = note.into_iter().fold(output, Output::note);
    }
    output.showing(Written(entries))
}

/// On SPIRE's command line the same is said on standard error once the server took the entries. What cannot be found out is not
/// warned of.
async fn warn(context: &Context, channel: &Channel, entries: &[Entry]) {
    if context.frontend == Frontend::Native {
        return;
    }
    let mut faults = selector_faults(entries);
    faults.extend(parent_faults(channel, entries).await.unwrap_or_default());
    for fault in faults {
        let at = fault.at.map_or_else(String::new, |at| format!(" ({at})"));
        output::say(&format!("Warning: {}{at}", fault.what));
    }
}

/// Notes on lifetimes longer than what is left of the authority: an SVID never outlives what signed it.
async fn lifetime_note(context: &Context, channel: &Channel, entries: &[Entry]) -> Option<String> {
    let longest = entries.iter().map(|entry| entry.x509_svid_ttl).max()?;
    if context.frontend == Frontend::Spire || longest == 0 {
        return None;
    }
    let state = LocalAuthorityClient::new(channel.clone())
        .get_x509_authority_state(GetX509AuthorityStateRequest {})
        .await
        .ok()?
        .into_inner();
    let end = state.active?.expires_at;
    let wanted = unix_seconds(context.clock.now()).saturating_add(i64::from(longest));
    (end != 0 && wanted > end).then(|| {
        format!(
            "warning: the lifetime of {longest} s is longer than the server's authority lives (until {}): X509-SVIDs expire no later than the authority that signs them",
            timefmt::rfc3339(end)
        )
    })
}

fn selector_faults(entries: &[Entry]) -> Vec<Fault> {
    entries
        .iter()
        .flat_map(|entry| &entry.selectors)
        .filter_map(selector_fault)
        .collect()
}

fn selector_fault(selector: &Selector) -> Option<Fault> {
    let text = format!("{}:{}", selector.r#type, selector.value);
    let wrong = |code, what: String, likely: Option<String>| {
        let hint = match likely {
            Some(likely) => {
                format!("did you mean {likely:?}? If it is meant as it is: --allow-unknown")
            }
            None => {
                "if it is meant as it is, as for an external plugin: --allow-unknown".to_owned()
            }
        };
        Some(Fault::new(code, what).at(&text).hint(hint))
    };
    let Some(attestor) = ATTESTORS
        .iter()
        .find(|attestor| attestor.name == selector.r#type)
    else {
        let near = closest(
            &selector.r#type,
            ATTESTORS.iter().map(|attestor| attestor.name),
        );
        return wrong(
            Code::UnknownSelectorType,
            format!(
                "no attestor gives selectors of the type {:?}",
                selector.r#type
            ),
            near.map(|name| format!("{name}:{}", selector.value)),
        );
    };
    let (key, value) = selector
        .value
        .split_once(':')
        .unwrap_or((&selector.value, ""));
    if !attestor.keys.is_empty() && !attestor.keys.contains(&key) {
        let near = closest(key, attestor.keys.iter().copied());
        if attestor.complete || near.is_some() {
            return wrong(
                Code::UnknownSelectorType,
                format!("the attestor {} gives no selector {key:?}", attestor.name),
                near.map(|near| format!("{}:{near}:{value}", attestor.name)),
            );
        }
    }
    let is_number = value.parse::<u32>().is_ok();
    match (attestor.name, key) {
        ("unix", "uid" | "gid" | "supplementary_gid") if !is_number => {
            let by_name = match key {
                "uid" => "user",
                "gid" => "group",
                _ => "supplementary_group",
            };
            wrong(
                Code::InvalidSelector,
                format!("unix:{key} takes a number"),
                Some(format!("unix:{by_name}:{value}")).filter(|_| !value.is_empty()),
            )
        }
        _ => None,
    }
}

fn past_faults(entries: &[Entry], now: i64) -> Vec<Fault> {
    entries
        .iter()
        .filter(|entry| entry.expires_at != 0 && entry.expires_at <= now)
        .map(|entry| {
            Fault::new(Code::InvalidEntry, "the entry has expired already")
                .at(ids::text(entry.spiffe_id.as_ref()))
                .because(format!(
                    "it expires at {}",
                    timefmt::rfc3339(entry.expires_at)
                ))
                .hint(
                    "give a later --expires-at, or leave it out; --allow-unknown takes it as it is",
                )
        })
        .collect()
}

async fn parent_faults(channel: &Channel, entries: &[Entry]) -> Result<Vec<Fault>, CliError> {
    let mut parents: Vec<&Spiffeid> = entries
        .iter()
        .filter_map(|entry| entry.parent_id.as_ref())
        .filter(|parent| parent.path != "/spire/server")
        .collect();
    parents.sort_by_key(|parent| (&parent.trust_domain, &parent.path));
    parents.dedup();
    let mut faults = Vec::new();
    for parent in parents {
        // An entry of the same file may be the parent of another.
        let is_new = entries
            .iter()
            .any(|entry| entry.spiffe_id.as_ref() == Some(parent));
        if !is_new && !exists(channel, parent).await? {
            faults.push(unknown_parent(channel, parent).await);
        }
    }
    Ok(faults)
}

/// Whether an attested node or the SPIFFE ID of an entry is the parent. What the server finds wrong with the ID itself
/// is for it to say when it gets the entry.
async fn exists(channel: &Channel, parent: &Spiffeid) -> Result<bool, CliError> {
    let filter = Filter {
        by_spiffe_id: Some(parent.clone()),
        ..Filter::default()
    };
    match matching(channel, filter, Part::ID).await {
        Ok(entries) if !entries.is_empty() => return Ok(true),
        Ok(_none) => {}
        Err(status) if status.code() == tonic::Code::InvalidArgument => return Ok(true),
        Err(status) => return Err(CliError::status("cannot look for the parent", status)),
    }
    let request = GetAgentRequest {
        id: Some(parent.clone()),
        output_mask: Some(AgentMask::default()),
    };
    match AgentClient::new(channel.clone()).get_agent(request).await {
        Ok(_agent) => Ok(true),
        // An ID outside of /spire/agent/ is malformed as an agent's.
        Err(status)
            if matches!(
                status.code(),
                tonic::Code::NotFound | tonic::Code::InvalidArgument
            ) =>
        {
            Ok(false)
        }
        Err(status) => Err(CliError::status("cannot look for the parent", status)),
    }
}

async fn unknown_parent(channel: &Channel, parent: &Spiffeid) -> Fault {
    let text = ids::text(Some(parent));
    let nodes = node_ids(channel).await;
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let likely = match names.as_slice() {
        [only] => Some(*only),
        several => closest(&text, several.iter().copied()),
    };
    let hint = match likely {
        Some(likely) => format!("did you mean {likely}? For a node that is still to come: --allow-unknown"),
        None => "`plastron server agent list` lists the nodes; for one that is still to come: --allow-unknown".to_owned(),
    };
    Fault::new(
        Code::UnknownParent,
        "the parent ID is neither an attested node nor an alias, so no agent would serve the entry",
    )
    .at(text)
    .hint(hint)
}

/// The IDs under which entries can hang: the nodes' aliases where they have one, else the nodes themselves. Empty when
/// they cannot be had: it is for a hint only.
async fn node_ids(channel: &Channel) -> Vec<String> {
    let agents = agent_list::pages(
        channel.clone(),
        Default::default(),
        Some(AgentMask::default()),
    )
    .await
    .unwrap_or_default();
    let mut names = Vec::new();
    for agent in agents.iter().take(MAX_SUGGESTED) {
        match alias(channel, agent.id.as_ref()).await {
            Some(alias) => names.push(ids::text(Some(&alias))),
            None => names.push(ids::text(agent.id.as_ref())),
        }
    }
    names
}

/// Nodes among which a likely parent is looked for.
const MAX_SUGGESTED: usize = 20;

/// The SPIFFE ID of the only entry whose parent is this node and whose ID other entries may name as their parent: what
/// `token generate --spiffe-id` makes. It survives a new token, which the node's own ID does not.
pub(super) async fn alias(channel: &Channel, node: Option<&Spiffeid>) -> Option<Spiffeid> {
    let token = node?.path.strip_prefix("/spire/agent/join_token/")?;
    let filter = Filter {
        by_parent_id: node.cloned(),
        ..Filter::default()
    };
    let entries = matching(channel, filter, Part::SELECTORS).await.ok()?;
    let is_alias = |entry: &&Entry| match entry.selectors.as_slice() {
        [selector] => selector.r#type == "spiffe_id" && selector.value.ends_with(token),
        _ => false,
    };
    let mut aliases = entries.iter().filter(is_alias);
    match (aliases.next(), aliases.next()) {
        (Some(entry), None) => entry.spiffe_id.clone(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{past_faults, selector_fault};
    use config::fault::Code;
    use proto::spire::api::types::{Entry, Selector};

    fn fault(text: &str) -> Option<(Code, String)> {
        let (kind, value) = text.split_once(':').unwrap();
        let fault = selector_fault(&Selector {
            r#type: kind.to_owned(),
            value: value.to_owned(),
        })?;
        Some((fault.code, fault.hint.unwrap()))
    }

    #[test]
    fn a_misspelt_selector_is_refused_with_the_likely_one() {
        for (text, code, likely) in [
            (
                "unxi:uid:1000",
                Code::UnknownSelectorType,
                "\"unix:uid:1000\"",
            ),
            (
                "Unix:uid:1000",
                Code::UnknownSelectorType,
                "\"unix:uid:1000\"",
            ),
            ("unix:udi:0", Code::UnknownSelectorType, "\"unix:uid:0\""),
            ("unix:uid:web", Code::InvalidSelector, "\"unix:user:web\""),
            ("unix:uid", Code::InvalidSelector, "--allow-unknown"),
            (
                "unix:color:red",
                Code::UnknownSelectorType,
                "--allow-unknown",
            ),
            (
                "k8s:pod_name:a",
                Code::UnknownSelectorType,
                "\"k8s:pod-name:a\"",
            ),
            ("acme:x:y", Code::UnknownSelectorType, "--allow-unknown"),
        ] {
            let (found, hint) = fault(text).unwrap();
            assert_eq!(found, code, "{text}");
            assert!(hint.contains(likely), "{text}: {hint}");
        }
    }

    #[test]
    fn a_selector_of_a_known_attestor_is_taken() {
        for text in [
            "unix:uid:0",
            "unix:user:web",
            "unix:path:/bin/a:b",
            "k8s:ns:shop",
            "k8s:image-signature:verified",
            "docker:label:a:b",
            "join_token:none",
            "aws_iid:tag:a:b",
        ] {
            assert_eq!(fault(text), None, "{text}");
        }
    }

    #[test]
    fn an_entry_that_has_expired_already_is_refused() {
        let entry = |expires_at| Entry {
            expires_at,
            ..Entry::default()
        };
        let count = |entries: &[Entry]| past_faults(entries, 100).len();
        assert_eq!(count(&[entry(0), entry(101)]), 0);
        assert_eq!(count(&[entry(100), entry(99), entry(-1)]), 3);
    }
}
