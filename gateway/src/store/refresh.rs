//! Authorization codes and refresh tokens, as hashes.
//!
//! Threat: a refresh token is copied.
//! Decision: each use replaces the token, and all that came from one sign-in are a family, its access tokens included.
//! A token that was replaced still works for a moment (an answer was lost, two processes raced), until one that came
//! of it is used: then all others of the family are over, and one of those that comes again ends the family.
//! Consequence: of thief and owner the second to refresh signs both out, and nothing outlives a sign-in that was ended.

use towline_proto::handshake::random_id;

use super::{Answered as _, Concern, Store, StoreError, Transaction, hash, sql, unix};

/// How long a token that was replaced still works, in seconds.
pub const GRACE_SECONDS: u64 = 30;

/// How long an authorization code is good for, in seconds.
pub const CODE_SECONDS: u64 = 60;

/// What an authorization code is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Who signed in.
    pub user: String,
    /// Which client asked.
    pub client_id: String,
    /// Where the answer went.
    pub redirect_uri: String,
    /// The PKCE challenge (S256).
    pub challenge: String,
}

/// How long what a sign-in gives is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// A refresh token that isn't used, in seconds.
    pub token: u64,
    /// All that came from one sign-in, in seconds.
    pub family: u64,
}

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: String,
    /// All that came from the same sign-in.
    pub family: String,
}

/// What became of a refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// It was replaced.
    Renewed(Owner),
    /// It is not known, or over.
    Invalid,
    /// It had been replaced before: its family was ended. It was this user's.
    Reused(String),
}

impl Store {
    /// Keeps an authorization code for [`CODE_SECONDS`].
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn add_authorization(
        &self,
        code: &str,
        bound: &Authorization,
        now: u64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        self.sweep(&mut transaction, now).await?;
        sqlx::query(
            "INSERT INTO authorization_codes (hash, user_name, client_id, redirect_uri, challenge, expires) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(hash(code))
        .bind(&bound.user)
        .bind(&bound.client_id)
        .bind(&bound.redirect_uri)
        .bind(&bound.challenge)
        .bind(sql(now + CODE_SECONDS))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        self.commit(transaction, Concern::Tokens).await
    }

    /// Exchanges an authorization code for the first refresh token of a family, if `check` agrees with what the
    /// code is bound to. A code is used up whatever `check` says; one that comes again ends the family it began.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn redeem_authorization(
        &self,
        code: &str,
        refresh: &str,
        lifetimes: Lifetimes,
        now: u64,
        check: impl FnOnce(&Authorization) -> bool + Send,
    ) -> Result<Option<Owner>, StoreError> {
        type Found = (String, String, String, String, Option<String>);
        let mut transaction = self.begin().await?;
        let found: Option<Found> = sqlx::query_as(
            "SELECT user_name, client_id, redirect_uri, challenge, family FROM authorization_codes \
             WHERE hash = $1 AND expires > $2",
        )
        .bind(hash(code))
        .bind(sql(now))
        .fetch_optional(&mut *transaction)
        .answered(self)
        .await?;
        let Some((user, client_id, redirect_uri, challenge, used)) = found else {
            return Ok(None);
        };
        if let Some(family) = used {
            let concern = self.end_family(&mut transaction, family).await?;
            self.commit(transaction, concern).await?;
            return Ok(None);
        }
        let bound = Authorization {
            user,
            client_id,
            redirect_uri,
            challenge,
        };
        let family = random_id().map_err(|error| self.value(error))?;
        sqlx::query("UPDATE authorization_codes SET family = $2 WHERE hash = $1")
            .bind(hash(code))
            .bind(&family)
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        let agreed = check(&bound);
        if agreed {
            sqlx::query(
                "INSERT INTO refresh_families (id, user_name, expires) VALUES ($1, $2, $3)",
            )
            .bind(&family)
            .bind(&bound.user)
            .bind(sql(now + lifetimes.family))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
            self.insert_refresh(&mut transaction, refresh, &family, now + lifetimes.token)
                .await?;
        }
        self.commit(transaction, Concern::Tokens).await?;
        Ok(agreed.then_some(Owner {
            user: bound.user,
            family,
        }))
    }

    /// Replaces a refresh token by the next of its family.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn rotate_refresh(
        &self,
        token: &str,
        next: &str,
        lifetimes: Lifetimes,
        now: u64,
    ) -> Result<Rotated, StoreError> {
        let mut transaction = self.begin().await?;
        let found: Option<(String, String, Option<i64>)> = sqlx::query_as(
            "SELECT f.id, f.user_name, t.rotated FROM refresh_tokens t JOIN refresh_families f ON f.id = t.family \
             WHERE t.hash = $1 AND t.expires > $2 AND f.expires > $2",
        )
        .bind(hash(token))
        .bind(sql(now))
        .fetch_optional(&mut *transaction)
        .answered(self)
        .await?;
        let Some((family, user, rotated)) = found else {
            return Ok(Rotated::Invalid);
        };
        if rotated.is_some_and(|rotated| now > unix(rotated) + GRACE_SECONDS) {
            let concern = self.end_family(&mut transaction, family).await?;
            self.commit(transaction, concern).await?;
            return Ok(Rotated::Reused(user));
        }
        if rotated.is_none() {
            // Whoever has this one has the answer to the one before: what else came of that is a copy's.
            sqlx::query("UPDATE refresh_tokens SET rotated = 0 WHERE family = $1 AND hash <> $2")
                .bind(&family)
                .bind(hash(token))
                .execute(&mut *transaction)
                .answered(self)
                .await?;
        }
        sqlx::query("UPDATE refresh_tokens SET rotated = COALESCE(rotated, $2) WHERE hash = $1")
            .bind(hash(token))
            .bind(sql(now))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        self.insert_refresh(&mut transaction, next, &family, now + lifetimes.token)
            .await?;
        self.sweep(&mut transaction, now).await?;
        self.commit(transaction, Concern::Tokens).await?;
        Ok(Rotated::Renewed(Owner { user, family }))
    }

    /// Whose a refresh token is that could be used now, without using it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn refresh_user(&self, token: &str, now: u64) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT f.user_name FROM refresh_tokens t JOIN refresh_families f ON f.id = t.family \
             WHERE t.hash = $1 AND t.expires > $2 AND f.expires > $2",
        )
        .bind(hash(token))
        .bind(sql(now))
        .fetch_optional(self.reader()?)
        .answered(self)
        .await
    }

    /// Ends the family of a refresh token, if there is one.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn revoke_refresh(&self, token: &str) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let family: Option<String> =
            sqlx::query_scalar("SELECT family FROM refresh_tokens WHERE hash = $1")
                .bind(hash(token))
                .fetch_optional(&mut *transaction)
                .answered(self)
                .await?;
        let concern = match family {
            Some(family) => self.end_family(&mut transaction, family).await?,
            None => Concern::Tokens,
        };
        self.commit(transaction, concern).await
    }

    async fn insert_refresh(
        &self,
        transaction: &mut Transaction,
        token: &str,
        family: &str,
        expires: u64,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO refresh_tokens (hash, family, expires) VALUES ($1, $2, $3)")
            .bind(hash(token))
            .bind(family)
            .bind(sql(expires))
            .execute(&mut **transaction)
            .answered(self)
            .await?;
        Ok(())
    }

    /// Ends refresh tokens and access tokens alike; says who has to hear of it.
    pub(super) async fn end_family(
        &self,
        transaction: &mut Transaction,
        family: String,
    ) -> Result<Concern, StoreError> {
        let mut ended = 0;
        for query in [
            "DELETE FROM refresh_families WHERE id = $1",
            "UPDATE sign_ins SET revoked = 1 WHERE revoked = 0 AND family = $1",
        ] {
            let done = sqlx::query(query).bind(&family).execute(&mut **transaction);
            ended = done.answered(self).await?.rows_affected();
        }
        // Streams are looked at again only where a token may have begun some.
        Ok(if ended == 0 {
            Concern::Tokens
        } else {
            Concern::Family(family)
        })
    }

    /// Deletes what is over, so that the tables stay as large as what is in use.
    async fn sweep(&self, transaction: &mut Transaction, now: u64) -> Result<(), StoreError> {
        for query in [
            "DELETE FROM refresh_families WHERE expires <= $1",
            "DELETE FROM refresh_tokens WHERE expires <= $1",
            "DELETE FROM authorization_codes WHERE expires <= $1",
            "DELETE FROM one_time_codes WHERE expires <= $1",
            "DELETE FROM registration_tokens WHERE expires <= $1",
        ] {
            sqlx::query(query)
                .bind(sql(now))
                .execute(&mut **transaction)
                .answered(self)
                .await?;
        }
        Ok(())
    }
}
