//! A workload that a broker names, by a reference of the SPIFFE Broker API.
//!
//! A reference to a process is resolved once, to a hold on that process: what is attested later is the same process, or
//! nothing. References to anything else, such as an object of Kubernetes, go to the attestors that know their type.

use prost::Message as _;
use prost_types::Any;
use proto::broker::WorkloadPidReference;

use super::peer::{Peer, PeerError};

/// The full name of the message for a process. What stands before the last `/` of a type URL is no part of the type.
const PROCESS: &str = "spiffe.broker.WorkloadPIDReference";

/// Why a reference stands for nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error("the workload reference is missing")]
    Missing,
    #[error("the workload reference is malformed: {0}")]
    Malformed(String),
    /// It names a process, but there is none, or none that can be looked at.
    #[error(transparent)]
    Process(#[from] PeerError),
}

/// What a reference stands for.
#[derive(Debug)]
pub enum Referenced {
    Process(Peer),
    /// For the attestors that know its type.
    Object(Any),
}

impl Referenced {
    /// Takes hold of the process that the reference names now; a reference of another type stays as it is.
    ///
    /// # Errors
    /// When there is no reference, it is malformed, or the process is gone.
    pub fn resolve(reference: Any) -> Result<Self, ReferenceError> {
        if reference.type_url.is_empty() {
            return Err(ReferenceError::Missing);
        }
        let Some((_, name)) = reference.type_url.rsplit_once('/') else {
            let because = format!("{:?} is not a type URL", reference.type_url);
            return Err(ReferenceError::Malformed(because));
        };
        if name != PROCESS {
            return Ok(Self::Object(reference));
        }
        let named = WorkloadPidReference::decode(&*reference.value)
            .map_err(|error| ReferenceError::Malformed(error.to_string()))?;
        if named.pid <= 0 {
            let because = format!("pid is {}, and has to be positive", named.pid);
            return Err(ReferenceError::Malformed(because));
        }
        Ok(Self::Process(Peer::of_process(named.pid)?))
    }
}

#[cfg(test)]
mod tests {
    use proto::broker::{KubernetesObjectReference, KubernetesObjectType};

    use super::*;

    fn process(type_url: &str, pid: i32) -> Any {
        Any {
            type_url: type_url.into(),
            value: WorkloadPidReference { pid }.encode_to_vec(),
        }
    }

    const URL: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

    #[test]
    fn ba_04_a_reference_to_a_process_is_a_hold_on_that_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        for url in [URL, "/spiffe.broker.WorkloadPIDReference"] {
            let Referenced::Process(peer) = Referenced::resolve(process(url, pid)).unwrap() else {
                panic!("{url}");
            };
            assert_eq!(peer.pid, pid);
            peer.still_alive().unwrap();
        }
    }

    #[test]
    fn ba_04_a_process_that_is_gone_is_no_workload() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        let refused = Referenced::resolve(process(URL, pid));
        assert!(
            matches!(
                refused,
                Err(ReferenceError::Process(PeerError::Gone { .. }))
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn ba_05_a_pid_is_positive() {
        for pid in [0, -1, i32::MIN] {
            let refused = Referenced::resolve(process(URL, pid));
            assert!(matches!(refused, Err(ReferenceError::Malformed(_))));
        }
    }

    #[test]
    fn ba_02_a_reference_that_is_missing_or_malformed_is_refused() {
        let missing = Referenced::resolve(Any::default());
        assert!(matches!(missing, Err(ReferenceError::Missing)));
        let mut broken = process(URL, 1);
        broken.value = vec![0xff; 4];
        let no_url = process("spiffe.broker.WorkloadPIDReference", 1);
        for malformed in [broken, no_url] {
            let refused = Referenced::resolve(malformed);
            assert!(
                matches!(refused, Err(ReferenceError::Malformed(_))),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_reference_of_another_type_is_for_the_attestors_that_know_it() {
        let pod = KubernetesObjectReference {
            r#type: Some(KubernetesObjectType {
                plural: "pods".into(),
                group: "core".into(),
            }),
            ..KubernetesObjectReference::default()
        };
        let any = Any {
            type_url: "type.googleapis.com/spiffe.broker.KubernetesObjectReference".into(),
            value: pod.encode_to_vec(),
        };
        let Referenced::Object(kept) = Referenced::resolve(any.clone()).unwrap() else {
            panic!("a pod is no process");
        };
        assert_eq!(kept, any);
    }
}
