// What a flag means, apart from where flags are kept.

/**
 * A flag that is on holds for the users that it names and for a share of all others.
 * @typedef {{ on: boolean, percent?: number, users?: string[] }} Flag
 * @typedef {Record<string, Flag>} Flags
 */

/**
 * @param {Flags} flags
 * @param {string} name
 * @param {string} user
 */
export async function enabled(flags, name, user) {
	const flag = flags[name];
	if (!flag?.on) {
		return false;
	}
	return flag.users?.includes(user) || (await share(`${name}/${user}`)) < (flag.percent ?? 100);
}

/**
 * A number from 0 to 100 that is always the same for a text: a user who has a feature
 * keeps it while the percentage grows, and each feature begins with other users.
 * @param {string} text
 */
async function share(text) {
	const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
	return (new DataView(digest).getUint32(0) / 2 ** 32) * 100;
}
