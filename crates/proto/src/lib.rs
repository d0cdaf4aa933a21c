//! Generated gRPC types of SPIFFE, SPIRE and Envoy SDS, and the conversions between them and the SPIFFE types.
