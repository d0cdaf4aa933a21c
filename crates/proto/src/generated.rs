//! The tree of generated modules: one module for each part of a package name, so that the references between
//! packages that the generator writes resolve. Nothing is written by hand below `gen/`.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::restriction,
    missing_docs,
    unreachable_pub,
    unnameable_types,
    unused_qualifications,
    elided_lifetimes_in_paths,
    let_underscore_drop,
    rustdoc::all,
    reason = "generated"
)]

/// The SPIFFE Workload API, which has no package name.
pub mod workload {
    include!("gen/_.rs");
}
/// The SPIFFE Broker API (package `spiffe.broker`).
pub mod broker {
    include!("gen/spiffe.broker.rs");
}
/// The go-plugin control services (package `plugin`).
pub mod go_plugin {
    include!("gen/plugin.rs");
}
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("gen/envoy.config.core.v3.rs");
            }
        }
    }
    pub mod extensions {
        pub mod transport_sockets {
            pub mod tls {
                pub mod v3 {
                    include!("gen/envoy.extensions.transport_sockets.tls.v3.rs");
                }
            }
        }
    }
    pub mod r#type {
        pub mod v3 {
            include!("gen/envoy.r#type.v3.rs");
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("gen/envoy.service.discovery.v3.rs");
            }
        }
        pub mod secret {
            pub mod v3 {
                include!("gen/envoy.service.secret.v3.rs");
            }
        }
    }
}
pub mod plastron {
    pub mod server {
        pub mod v1 {
            include!("gen/plastron.server.v1.rs");
        }
    }
}
pub mod spire {
    pub mod agent {
        pub mod debug {
            pub mod v1 {
                include!("gen/spire.agent.debug.v1.rs");
            }
        }
    }
    pub mod api {
        pub mod agent {
            pub mod delegatedidentity {
                pub mod v1 {
                    include!("gen/spire.api.agent.delegatedidentity.v1.rs");
                }
            }
            pub mod logger {
                pub mod v1 {
                    include!("gen/spire.api.agent.logger.v1.rs");
                }
            }
        }
        pub mod server {
            pub mod agent {
                pub mod v1 {
                    include!("gen/spire.api.server.agent.v1.rs");
                }
            }
            pub mod bundle {
                pub mod v1 {
                    include!("gen/spire.api.server.bundle.v1.rs");
                }
            }
            pub mod debug {
                pub mod v1 {
                    include!("gen/spire.api.server.debug.v1.rs");
                }
            }
            pub mod entry {
                pub mod v1 {
                    include!("gen/spire.api.server.entry.v1.rs");
                }
            }
            pub mod localauthority {
                pub mod v1 {
                    include!("gen/spire.api.server.localauthority.v1.rs");
                }
            }
            pub mod logger {
                pub mod v1 {
                    include!("gen/spire.api.server.logger.v1.rs");
                }
            }
            pub mod svid {
                pub mod v1 {
                    include!("gen/spire.api.server.svid.v1.rs");
                }
            }
            pub mod trustdomain {
                pub mod v1 {
                    include!("gen/spire.api.server.trustdomain.v1.rs");
                }
            }
        }
        pub mod types {
            include!("gen/spire.api.types.rs");
        }
    }
    pub mod hostservice {
        pub mod common {
            pub mod metrics {
                pub mod v1 {
                    include!("gen/spire.hostservice.common.metrics.v1.rs");
                }
            }
        }
        pub mod server {
            pub mod agentstore {
                pub mod v1 {
                    include!("gen/spire.hostservice.server.agentstore.v1.rs");
                }
            }
            pub mod identityprovider {
                pub mod v1 {
                    include!("gen/spire.hostservice.server.identityprovider.v1.rs");
                }
            }
        }
    }
    pub mod plugin {
        pub mod agent {
            pub mod keymanager {
                pub mod v1 {
                    include!("gen/spire.plugin.agent.keymanager.v1.rs");
                }
            }
            pub mod nodeattestor {
                pub mod v1 {
                    include!("gen/spire.plugin.agent.nodeattestor.v1.rs");
                }
            }
            pub mod svidstore {
                pub mod v1 {
                    include!("gen/spire.plugin.agent.svidstore.v1.rs");
                }
            }
            pub mod workloadattestor {
                pub mod v1 {
                    include!("gen/spire.plugin.agent.workloadattestor.v1.rs");
                }
            }
        }
        pub mod server {
            pub mod bundlepublisher {
                pub mod v1 {
                    include!("gen/spire.plugin.server.bundlepublisher.v1.rs");
                }
            }
            pub mod credentialcomposer {
                pub mod v1 {
                    include!("gen/spire.plugin.server.credentialcomposer.v1.rs");
                }
            }
            pub mod keymanager {
                pub mod v1 {
                    include!("gen/spire.plugin.server.keymanager.v1.rs");
                }
            }
            pub mod nodeattestor {
                pub mod v1 {
                    include!("gen/spire.plugin.server.nodeattestor.v1.rs");
                }
            }
            pub mod notifier {
                pub mod v1 {
                    include!("gen/spire.plugin.server.notifier.v1.rs");
                }
            }
            pub mod upstreamauthority {
                pub mod v1 {
                    include!("gen/spire.plugin.server.upstreamauthority.v1.rs");
                }
            }
        }
        pub mod types {
            include!("gen/spire.plugin.types.rs");
        }
    }
    pub mod service {
        pub mod common {
            pub mod config {
                pub mod v1 {
                    include!("gen/spire.service.common.config.v1.rs");
                }
            }
        }
        pub mod private {
            pub mod init {
                pub mod v1 {
                    include!("gen/spire.service.private.init.v1.rs");
                }
            }
        }
    }
}
