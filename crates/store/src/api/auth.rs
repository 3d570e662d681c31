//! Users, roles and permissions. Passwords are hashed here, before anything goes into the log.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Caller, Context, unexpected};
use crate::auth::{check_password, hash_password};
use crate::error;
use crate::pb::etcdserverpb as rpc;
use crate::pb::orlop::store::auth_command::Op as AuthOp;
use crate::pb::orlop::store::command::Op;
use crate::pb::orlop::store::{AuthCommand, Token};
use crate::propose::Reply;

#[derive(Clone)]
pub struct Auth(pub Arc<Context>);

impl Auth {
    async fn change(&self, op: AuthOp, caller: Caller) -> Result<(), Status> {
        self.0.voter()?;
        let command = AuthCommand { op: Some(op) };
        match self.0.propose(Op::Auth(command), caller).await? {
            Reply::Auth => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Slow on purpose, so not where other requests wait.
    async fn hash(&self, password: String, hashed: String) -> Result<String, Status> {
        if !hashed.is_empty() {
            return Ok(hashed);
        }
        let cost = self.0.bcrypt_cost;
        let hash = tokio::task::spawn_blocking(move || hash_password(&password, cost)).await;
        Ok(hash.map_err(|e| Status::internal(e.to_string()))??)
    }
}

#[tonic::async_trait]
impl rpc::auth_server::Auth for Auth {
    async fn auth_enable(
        &self,
        request: Request<rpc::AuthEnableRequest>,
    ) -> Result<Response<rpc::AuthEnableResponse>, Status> {
        // Once it is on, only an administrator may say so again.
        let caller = self.0.admit_admin(&request)?;
        self.change(AuthOp::Enable(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthEnableResponse {
            header: self.0.current_header(),
        }))
    }

    async fn auth_disable(
        &self,
        request: Request<rpc::AuthDisableRequest>,
    ) -> Result<Response<rpc::AuthDisableResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::Disable(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthDisableResponse {
            header: self.0.current_header(),
        }))
    }

    async fn auth_status(
        &self,
        request: Request<rpc::AuthStatusRequest>,
    ) -> Result<Response<rpc::AuthStatusResponse>, Status> {
        self.0.admit_admin(&request)?;
        let (enabled, auth_revision) = {
            let machine = self.0.node.machine.read();
            (machine.auth.enabled(), machine.auth.revision())
        };
        Ok(Response::new(rpc::AuthStatusResponse {
            header: self.0.current_header(),
            enabled,
            auth_revision,
        }))
    }

    async fn authenticate(
        &self,
        request: Request<rpc::AuthenticateRequest>,
    ) -> Result<Response<rpc::AuthenticateResponse>, Status> {
        self.0.voter()?;
        let request = request.into_inner();
        // What the password was checked against may change while that is done.
        for _ in 0..5 {
            self.0.node.read().await?;
            let login = self.0.node.machine.read().auth.login(&request.name)?;
            let (password, hash) = (request.password.clone(), login.hash.clone());
            let checked =
                tokio::task::spawn_blocking(move || check_password(&password, &hash)).await;
            checked.map_err(|e| Status::internal(e.to_string()))??;
            let index = self.0.node.standing().applied;
            let now = self.0.time_of_day();
            let token = match self
                .0
                .tokens
                .issue(&request.name, login.revision, index, now)?
            {
                crate::auth::Issued::Ready(token) => token,
                crate::auth::Issued::Announce(token) => {
                    let login = Token {
                        token: token.clone(),
                        user: request.name.clone(),
                    };
                    self.change(AuthOp::Token(login), Caller::default()).await?;
                    token
                }
            };
            if self.0.node.machine.read().auth.revision() == login.revision {
                return Ok(Response::new(rpc::AuthenticateResponse {
                    header: self.0.current_header(),
                    token,
                }));
            }
        }
        Err(error::AUTH_OLD_REVISION.into())
    }

    async fn user_add(
        &self,
        request: Request<rpc::AuthUserAddRequest>,
    ) -> Result<Response<rpc::AuthUserAddResponse>, Status> {
        let caller = self.0.admit(&request)?;
        let mut request = request.into_inner();
        if request.name.is_empty() {
            return Err(error::USER_EMPTY.into());
        }
        let password = std::mem::take(&mut request.password);
        if !request.options.is_some_and(|options| options.no_password) {
            request.hashed_password = self.hash(password, request.hashed_password).await?;
        }
        self.change(AuthOp::UserAdd(request), caller).await?;
        Ok(Response::new(rpc::AuthUserAddResponse {
            header: self.0.current_header(),
        }))
    }

    async fn user_get(
        &self,
        request: Request<rpc::AuthUserGetRequest>,
    ) -> Result<Response<rpc::AuthUserGetResponse>, Status> {
        let caller = self.0.admit(&request)?;
        let name = &request.get_ref().name;
        self.0.node.read().await?;
        let roles = {
            let machine = self.0.node.machine.read();
            if caller.user != *name {
                machine.auth.permits_admin(&caller)?;
            }
            machine.auth.user(name)?
        };
        Ok(Response::new(rpc::AuthUserGetResponse {
            header: self.0.current_header(),
            roles,
        }))
    }

    async fn user_list(
        &self,
        request: Request<rpc::AuthUserListRequest>,
    ) -> Result<Response<rpc::AuthUserListResponse>, Status> {
        self.0.admit_admin(&request)?;
        self.0.node.read().await?;
        let users = self.0.node.machine.read().auth.users();
        Ok(Response::new(rpc::AuthUserListResponse {
            header: self.0.current_header(),
            users,
        }))
    }

    async fn user_change_password(
        &self,
        request: Request<rpc::AuthUserChangePasswordRequest>,
    ) -> Result<Response<rpc::AuthUserChangePasswordResponse>, Status> {
        let caller = self.0.admit(&request)?;
        let mut request = request.into_inner();
        let password = std::mem::take(&mut request.password);
        request.hashed_password = self.hash(password, request.hashed_password).await?;
        self.change(AuthOp::UserChangePassword(request), caller)
            .await?;
        Ok(Response::new(rpc::AuthUserChangePasswordResponse {
            header: self.0.current_header(),
        }))
    }

    async fn role_get(
        &self,
        request: Request<rpc::AuthRoleGetRequest>,
    ) -> Result<Response<rpc::AuthRoleGetResponse>, Status> {
        let caller = self.0.admit(&request)?;
        let name = &request.get_ref().role;
        self.0.node.read().await?;
        let perm = {
            let machine = self.0.node.machine.read();
            let own = machine
                .auth
                .user(&caller.user)
                .is_ok_and(|roles| roles.contains(name));
            if !own {
                machine.auth.permits_admin(&caller)?;
            }
            machine.auth.role(name)?
        };
        Ok(Response::new(rpc::AuthRoleGetResponse {
            header: self.0.current_header(),
            perm,
        }))
    }

    async fn role_list(
        &self,
        request: Request<rpc::AuthRoleListRequest>,
    ) -> Result<Response<rpc::AuthRoleListResponse>, Status> {
        self.0.admit_admin(&request)?;
        self.0.node.read().await?;
        let roles = self.0.node.machine.read().auth.roles();
        Ok(Response::new(rpc::AuthRoleListResponse {
            header: self.0.current_header(),
            roles,
        }))
    }

    async fn user_delete(
        &self,
        request: Request<rpc::AuthUserDeleteRequest>,
    ) -> Result<Response<rpc::AuthUserDeleteResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::UserDelete(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthUserDeleteResponse {
            header: self.0.current_header(),
        }))
    }

    async fn user_grant_role(
        &self,
        request: Request<rpc::AuthUserGrantRoleRequest>,
    ) -> Result<Response<rpc::AuthUserGrantRoleResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::UserGrantRole(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthUserGrantRoleResponse {
            header: self.0.current_header(),
        }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<rpc::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<rpc::AuthUserRevokeRoleResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::UserRevokeRole(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthUserRevokeRoleResponse {
            header: self.0.current_header(),
        }))
    }

    async fn role_add(
        &self,
        request: Request<rpc::AuthRoleAddRequest>,
    ) -> Result<Response<rpc::AuthRoleAddResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::RoleAdd(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthRoleAddResponse {
            header: self.0.current_header(),
        }))
    }

    async fn role_delete(
        &self,
        request: Request<rpc::AuthRoleDeleteRequest>,
    ) -> Result<Response<rpc::AuthRoleDeleteResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::RoleDelete(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthRoleDeleteResponse {
            header: self.0.current_header(),
        }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<rpc::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<rpc::AuthRoleGrantPermissionResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::RoleGrantPermission(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthRoleGrantPermissionResponse {
            header: self.0.current_header(),
        }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<rpc::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<rpc::AuthRoleRevokePermissionResponse>, Status> {
        let caller = self.0.admit(&request)?;
        self.change(AuthOp::RoleRevokePermission(request.into_inner()), caller)
            .await?;
        Ok(Response::new(rpc::AuthRoleRevokePermissionResponse {
            header: self.0.current_header(),
        }))
    }
}
