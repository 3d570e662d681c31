//! gRPC's health check: serving means that there is a leader.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tonic::{Request, Response, Status};

use super::{Answers, Context};
use crate::pb::grpc::health::v1 as pb;
use crate::pb::grpc::health::v1::health_check_response::ServingStatus;

#[derive(Clone)]
pub struct Health(pub Arc<Context>);

fn answer(leader: u64) -> pb::HealthCheckResponse {
    let status = if leader == 0 {
        ServingStatus::NotServing
    } else {
        ServingStatus::Serving
    };
    pb::HealthCheckResponse {
        status: status as i32,
    }
}

fn known(service: &str) -> bool {
    service.is_empty() || service.starts_with("etcdserverpb.")
}

#[tonic::async_trait]
impl pb::health_server::Health for Health {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        if !known(&request.get_ref().service) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(self.0.node.standing().leader)))
    }

    type WatchStream = Answers<pb::HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !known(&request.get_ref().service) {
            let unknown = pb::HealthCheckResponse {
                status: ServingStatus::ServiceUnknown as i32,
            };
            let once =
                futures_util::stream::iter([Ok(unknown)]).chain(futures_util::stream::pending());
            return Ok(Response::new(Box::pin(once)));
        }
        let leaders = tokio_stream::wrappers::WatchStream::new(self.0.node.leader());
        Ok(Response::new(Box::pin(
            leaders.map(|leader| Ok(answer(leader))),
        )))
    }
}
