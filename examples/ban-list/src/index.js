// Stands before an app: banned users and lost devices do not get to it. A ban is a
// key, users/ID or devices/ID, and ends by itself when the key expires.
//
// Below /.bans/ the administrators of the app see, make and lift bans.

/**
 * @typedef {{ BANS: KVNamespace, ADMIN_TOKEN: string }} Env
 * @typedef {{ reason: string, until: number | null }} Ban  until: seconds since 1970
 */

const ADMIN = "/.bans/";
const CACHE_SECONDS = 30; // a new ban is known everywhere within this time

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const { pathname, searchParams } = new URL(request.url);
		if (pathname.startsWith(ADMIN)) {
			return (await authorized(request, env.ADMIN_TOKEN))
				? admin(request, env.BANS, pathname.slice(ADMIN.length), searchParams)
				: Response.json({ error: "not for you" }, { status: 401, headers: { "WWW-Authenticate": "Bearer" } });
		}
		return (await refusal(request, env.BANS)) ?? fetch(request);
	},
};

/**
 * Is the user or the device of a request banned? Both are looked up at once.
 * @param {Request} request
 * @param {KVNamespace} bans
 */
async function refusal(request, bans) {
	const names = ["User", "Device"].flatMap((kind) => {
		const id = request.headers.get(`X-${kind}-Id`);
		return id ? [key(`${kind.toLowerCase()}s`, id)] : [];
	});
	if (names.length === 0) {
		return null; // the app asks who they are
	}
	const found = await bans.get(names, { type: "json", cacheTtl: CACHE_SECONDS });
	for (const name of names) {
		const ban = /** @type {Ban | null | undefined} */ (found.get(name));
		if (ban) {
			const { reason, until } = ban;
			/** @type {Record<string, string>} */
			const headers = until ? { "Retry-After": new Date(until * 1000).toUTCString() } : {};
			return Response.json({ error: "banned", reason, until }, { status: 403, headers });
		}
	}
	return null;
}

/**
 * A key has at most 512 bytes; an id may be anything.
 * @param {string} kind
 * @param {string} id
 */
function key(kind, id) {
	return `${kind}/${id.slice(0, 100)}`;
}

/** @param {string} text */
function decode(text) {
	try {
		return decodeURIComponent(text);
	} catch {
		return text; // a lone percent sign
	}
}

/**
 * @param {Request} request
 * @param {KVNamespace} bans
 * @param {string} path
 * @param {URLSearchParams} query
 */
async function admin(request, bans, path, query) {
	const [, kind, id] = path.match(/^(users|devices)\/([^/]*)$/) ?? [];
	if (kind === undefined) {
		return Response.json({ error: "want users/ID or devices/ID" }, { status: 404 });
	}
	const name = key(kind, decode(id));
	switch (`${request.method} ${id ? "one" : "all"}`) {
		case "GET all":
			return list(bans, `${kind}/`, query.get("cursor"));
		case "GET one": {
			const ban = await bans.get(name);
			return ban ? new Response(ban, { headers: { "Content-Type": "application/json" } }) : Response.json(null, { status: 404 });
		}
		case "PUT one":
			return add(request, bans, name);
		case "DELETE one":
			await bans.delete(name);
			return new Response(null, { status: 204 });
	}
	return Response.json({ error: "not allowed here" }, { status: 405 });
}

/**
 * @param {Request} request
 * @param {KVNamespace} bans
 * @param {string} name
 */
async function add(request, bans, name) {
	const sent = await request.json().catch(() => null);
	const { reason = "", seconds } = sent ?? {};
	if (!sent || typeof reason !== "string" || (seconds !== undefined && !(Number.isInteger(seconds) && seconds > 0))) {
		return Response.json({ error: 'want {"reason": "…", "seconds": 3600}; without seconds it is for ever' }, { status: 400 });
	}
	/** @type {Ban} */
	const ban = { reason: reason.slice(0, 200), until: seconds ? Math.floor(Date.now() / 1000) + seconds : null };
	try {
		// The ban is its own metadata too: a listing shows all of it.
		await bans.put(name, JSON.stringify(ban), { expirationTtl: seconds, metadata: ban });
	} catch (error) {
		return Response.json({ error: String(error) }, { status: 400 }); // such as: KV has a least time
	}
	return Response.json(ban, { status: 201 });
}

/**
 * @param {KVNamespace} bans
 * @param {string} prefix
 * @param {string | null} cursor
 */
async function list(bans, prefix, cursor) {
	const page = await bans.list({ prefix, cursor });
	return Response.json({
		bans: page.keys.map(({ name, metadata }) => ({ id: name.slice(prefix.length), .../** @type {Ban} */ (metadata) })),
		cursor: page.list_complete ? null : page.cursor,
	});
}

/**
 * Compares digests, which takes the same time whatever was guessed.
 * @param {Request} request
 * @param {string} token
 */
async function authorized(request, token) {
	const [a, b] = await Promise.all(
		[request.headers.get("Authorization") ?? "", `Bearer ${token}`].map((text) =>
			crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)),
		),
	);
	return Boolean(token) && crypto.subtle.timingSafeEqual(a, b);
}
