// A directory that is asked from a chat, by a slash command:
//
//     /who add NAME TEXT     /who delete NAME     /who find PREFIX     /who export
//
// The chat posts what was typed as a form and signs it, as Slack and Mattermost do.
// An entry is a key, TEAM/NAME in lower case; what it says is the key's metadata, so
// that a listing shows all of it.

import { signature, verify } from "./sign.js";

/**
 * @typedef {{ ENTRIES: KVNamespace, SIGNING_SECRET: string }} Env
 * @typedef {{ name: string, text: string, by: string }} Entry
 */

const MAX_BODY_BYTES = 16 * 1024;
const MAX_AGE_SECONDS = 300; // of a signed request: an older one is somebody's recording
const LINK_SECONDS = 300; // that the link to an export is good for
const MAX_NAME = 60; // characters
const MAX_METADATA_BYTES = 1024; // of KV
const MAX_FOUND = 20; // entries that an answer shows

const HELP = "add NAME TEXT · delete NAME · find PREFIX · export";

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const url = new URL(request.url);
		switch (`${request.method} ${url.pathname}`) {
			case "POST /command":
				return receive(request, env);
			case "GET /export":
				return download(url.searchParams, env);
		}
		return new Response("There is nothing here.\n", { status: 404 });
	},
};

/**
 * @param {Request} request
 * @param {Env} env
 */
async function receive(request, env) {
	if (Number(request.headers.get("Content-Length") ?? Infinity) > MAX_BODY_BYTES) {
		return new Response("That is too long.\n", { status: 413 });
	}
	const body = await request.text();
	const time = request.headers.get("X-Slack-Request-Timestamp") ?? "";
	const fresh = /^\d{1,12}$/.test(time) && Math.abs(Date.now() / 1000 - Number(time)) <= MAX_AGE_SECONDS;
	const signed = request.headers.get("X-Slack-Signature") ?? "";
	if (!fresh || !(await verify(env.SIGNING_SECRET, `v0:${time}:${body}`, signed.replace(/^v0=/, "")))) {
		return new Response("The signature is not good.\n", { status: 401 });
	}
	const form = new URLSearchParams(body);
	const team = form.get("team_id") ?? "";
	if (!/^[\w-]{1,40}$/.test(team)) {
		return new Response("There is no team.\n", { status: 400 });
	}
	const text = await run(env, { team, user: form.get("user_name") ?? "?", text: form.get("text") ?? "" }, new URL(request.url).origin);
	return Response.json({ response_type: "ephemeral", text });
}

/**
 * Does what a command says, and says what it did.
 * @param {Env} env
 * @param {{ team: string, user: string, text: string }} command
 * @param {string} origin
 */
async function run(env, { team, user, text }, origin) {
	const [, verb, rest] = text.trim().match(/^(\S*)\s*(.*)$/s) ?? ["", "", ""];
	switch (verb) {
		case "add":
			return add(env.ENTRIES, team, user, rest);
		case "delete": {
			const name = key(team, rest);
			if ((await env.ENTRIES.get(name)) === null) {
				return `There is no ${escape(rest)}.`;
			}
			await env.ENTRIES.delete(name);
			return `${escape(rest)} is deleted.`;
		}
		case "find":
			return find(env.ENTRIES, team, rest);
		case "export": {
			const until = String(Math.floor(Date.now() / 1000) + LINK_SECONDS);
			const link = new URLSearchParams({ team, until, signature: await signature(env.SIGNING_SECRET, `export:${team}:${until}`) });
			return `${origin}/export?${link}`; // good for five minutes
		}
	}
	return HELP;
}

/**
 * @param {KVNamespace} entries
 * @param {string} team
 * @param {string} user
 * @param {string} rest
 */
async function add(entries, team, user, rest) {
	const [, name, text] = rest.match(/^(\S+)\s+(.+)$/s) ?? [];
	if (!name || name.length > MAX_NAME) {
		return `Say: add NAME TEXT. A name is one word of at most ${MAX_NAME} characters.`;
	}
	/** @type {Entry} */
	const entry = { name, text: text.trim(), by: user };
	if (new TextEncoder().encode(JSON.stringify(entry)).length > MAX_METADATA_BYTES) {
		return "That is too long.";
	}
	await entries.put(key(team, name), "", { metadata: entry });
	return `${escape(name)} is in the directory.`;
}

/**
 * @param {KVNamespace} entries
 * @param {string} team
 * @param {string} prefix
 */
async function find(entries, team, prefix) {
	const { keys, list_complete } = await entries.list({ prefix: key(team, prefix), limit: MAX_FOUND });
	if (keys.length === 0) {
		return `Nobody begins with ${escape(prefix)}.`;
	}
	const lines = keys.map(({ metadata }) => {
		const { name, text, by } = /** @type {Entry} */ (metadata);
		return `*${escape(name)}* ${escape(text)} (${escape(by)})`;
	});
	return [...lines, ...(list_complete ? [] : ["… and others"])].join("\n");
}

/**
 * Sends all entries of a team, one a line. They are read page by page while they are
 * sent: the directory may be larger than the memory.
 * @param {URLSearchParams} query
 * @param {Env} env
 */
async function download(query, env) {
	const [team, until, signed] = ["team", "until", "signature"].map((name) => query.get(name) ?? "");
	if (!(await verify(env.SIGNING_SECRET, `export:${team}:${until}`, signed)) || Number(until) < Date.now() / 1000) {
		return new Response("The link is not good any more. Ask for another one.\n", { status: 403 });
	}
	return new Response(exported(env.ENTRIES, `${team}/`), {
		headers: {
			"Content-Type": "application/x-ndjson",
			"Content-Disposition": `attachment; filename="directory.ndjson"`,
			"Cache-Control": "private, no-store",
			"Referrer-Policy": "no-referrer",
		},
	});
}

/**
 * @param {KVNamespace} entries
 * @param {string} prefix
 */
function exported(entries, prefix) {
	const encoder = new TextEncoder();
	/** @type {string | undefined} */
	let cursor;
	return new ReadableStream({
		/** @param {ReadableStreamDefaultController} controller */
		async pull(controller) {
			const page = await entries.list({ prefix, cursor });
			controller.enqueue(encoder.encode(page.keys.map(({ metadata }) => `${JSON.stringify(metadata)}\n`).join("")));
			if (page.list_complete) {
				controller.close();
				return;
			}
			cursor = page.cursor;
		},
	});
}

/**
 * @param {string} team
 * @param {string} name
 */
function key(team, name) {
	return `${team}/${name.toLowerCase().slice(0, MAX_NAME)}`;
}

/**
 * What people typed is shown as text: no links, and nobody is called by it.
 * @param {string} text
 */
function escape(text) {
	return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
