// Signs people in to apps by OAuth authorization codes with PKCE (RFC 6749, 7636),
// for a site that has accounts but no OAuth. In KV are
//
//     client/ID     an app: {"redirects": ["https://…"]}
//     code/HASH     a code that was given out; ten minutes
//     token/HASH    an access token; an hour
//
// Codes and tokens are kept as their SHA-256: who reads the namespace has none.

import { base64url, hmac, sha256, sha256hex } from "./digest.js";

/**
 * @typedef {{ GRANTS: KVNamespace, TOKEN_KEY: string }} Env
 * @typedef {{ redirects: string[] }} Client
 * @typedef {{ client: string, redirect: string, user: string, challenge: string, expires: number, used?: string }} Code
 *     expires: seconds since 1970; used: the hash of the token that it was exchanged for
 * @typedef {{ client: string, user: string, expires: number }} Token
 */

const CODE_SECONDS = 600;
const TOKEN_SECONDS = 3600;
const MAX_BODY_BYTES = 8 * 1024;
const NO_STORE = { "Cache-Control": "no-store", "Referrer-Policy": "no-referrer" };

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		switch (`${request.method} ${new URL(request.url).pathname}`) {
			case "GET /oauth/authorize":
				return authorize(request, env);
			case "POST /oauth/token":
				return exchange(request, env);
			case "GET /oauth/userinfo":
				return userinfo(request, env);
		}
		return Response.json({ error: "not_found" }, { status: 404 });
	},
};

/**
 * Sends the browser back to the app with a code.
 * @param {Request} request
 * @param {Env} env
 */
async function authorize(request, env) {
	const url = new URL(request.url);
	const query = once(url.searchParams);
	const id = query?.get("client_id") ?? "";
	const redirect = query?.get("redirect_uri") ?? "";
	const client = await findClient(env, id);
	if (!query || !client?.redirects.includes(redirect)) {
		// Nobody is sent to an address that the app has not registered, not even with an error.
		return new Response("This app or its address is unknown.\n", { status: 400, headers: NO_STORE });
	}
	/** @param {Record<string, string>} answer */
	const back = (answer) => {
		const target = new URL(redirect);
		const all = { ...answer, iss: url.origin, ...(query.has("state") && { state: query.get("state") ?? "" }) };
		for (const [name, value] of Object.entries(all)) {
			target.searchParams.set(name, value);
		}
		return new Response(null, { status: 302, headers: { ...NO_STORE, Location: target.href } });
	};
	if (query.get("response_type") !== "code") {
		return back({ error: "unsupported_response_type" });
	}
	const challenge = query.get("code_challenge") ?? "";
	if (query.get("code_challenge_method") !== "S256" || !/^[\w-]{43}$/.test(challenge)) {
		return back({ error: "invalid_request", error_description: "PKCE with S256 is needed" });
	}
	const user = await signedIn(request);
	if (user === null) {
		const signIn = new URL("/login", url);
		signIn.searchParams.set("return_to", url.pathname + url.search);
		return new Response(null, { status: 302, headers: { ...NO_STORE, Location: signIn.href } });
	}
	const code = base64url(crypto.getRandomValues(new Uint8Array(32)));
	/** @type {Code} */
	const record = { client: id, redirect, user, challenge, expires: now() + CODE_SECONDS };
	await env.GRANTS.put(`code/${await sha256hex(code)}`, JSON.stringify(record), { expirationTtl: CODE_SECONDS });
	return back({ code });
}

/**
 * Exchanges a code for a token.
 * @param {Request} request
 * @param {Env} env
 */
async function exchange(request, env) {
	if (Number(request.headers.get("Content-Length") ?? Infinity) > MAX_BODY_BYTES) {
		return refuse("invalid_request");
	}
	const form = once(new URLSearchParams(await request.text()));
	const verifier = form?.get("code_verifier") ?? "";
	if (!form || !/^[\w.~-]{43,128}$/.test(verifier)) {
		return refuse("invalid_request");
	}
	if (form.get("grant_type") !== "authorization_code") {
		return refuse("unsupported_grant_type");
	}
	const code = form.get("code") ?? "";
	const key = `code/${await sha256hex(code)}`;
	const record = /** @type {Code | null} */ (await env.GRANTS.get(key, "json"));
	const good =
		record &&
		record.expires > now() && // a copy that is kept near may outlive its key
		record.client === form.get("client_id") &&
		record.redirect === form.get("redirect_uri") &&
		record.challenge === base64url(await sha256(verifier));
	if (!good) {
		return refuse("invalid_grant");
	}
	if (record.used) {
		// Two have the code and its verifier, and one of them is a thief: neither keeps the token.
		await env.GRANTS.delete(`token/${record.used}`);
		return refuse("invalid_grant");
	}
	// Not random: who exchanges the code at another place before the note of its use has
	// come there gets the same token, never a second one.
	const token = base64url(await hmac(env.TOKEN_KEY, `token:${code}`));
	const hash = await sha256hex(token);
	// The note comes first. If this ends before the token is there, the app begins anew.
	await env.GRANTS.put(key, JSON.stringify({ ...record, used: hash }), { expirationTtl: CODE_SECONDS });
	/** @type {Token} */
	const granted = { client: record.client, user: record.user, expires: now() + TOKEN_SECONDS };
	await env.GRANTS.put(`token/${hash}`, JSON.stringify(granted), { expirationTtl: TOKEN_SECONDS });
	return Response.json({ access_token: token, token_type: "Bearer", expires_in: TOKEN_SECONDS }, { headers: NO_STORE });
}

/**
 * Tells an app whom it has signed in.
 * @param {Request} request
 * @param {Env} env
 */
async function userinfo(request, env) {
	const [, sent] = request.headers.get("Authorization")?.match(/^Bearer ([\w-]{43})$/i) ?? [];
	const token = sent && /** @type {Token | null} */ (await env.GRANTS.get(`token/${await sha256hex(sent)}`, "json"));
	if (!token || token.expires <= now()) {
		return Response.json(
			{ error: "invalid_token" },
			{ status: 401, headers: { ...NO_STORE, "WWW-Authenticate": 'Bearer error="invalid_token"' } },
		);
	}
	return Response.json({ sub: token.user, client_id: token.client }, { headers: NO_STORE });
}

/**
 * Who is signed in to the site: its own server knows, by its cookies.
 * @param {Request} request
 * @returns {Promise<string | null>}
 */
async function signedIn(request) {
	const response = await fetch(new URL("/session", request.url), {
		headers: { Cookie: request.headers.get("Cookie") ?? "" },
		redirect: "manual",
	});
	if (response.status !== 200) {
		await response.body?.cancel();
		return null;
	}
	const session = /** @type {{ user?: unknown }} */ (await response.json());
	return typeof session.user === "string" && session.user !== "" ? session.user : null;
}

/**
 * @param {Env} env
 * @param {string} id
 * @returns {Promise<Client | null>}
 */
async function findClient(env, id) {
	return /^[\w-]{1,64}$/.test(id) ? env.GRANTS.get(`client/${id}`, "json") : null;
}

/**
 * Parameters, unless one of them comes twice: two readers could mean two things by it.
 * @param {URLSearchParams} parameters
 */
function once(parameters) {
	const names = [...parameters.keys()];
	return new Set(names).size === names.length ? parameters : null;
}

/** @param {string} error */
function refuse(error) {
	return Response.json({ error }, { status: 400, headers: NO_STORE });
}

function now() {
	return Math.floor(Date.now() / 1000);
}
