// On a page of the report that the explorer serves: a link back to the explorer and to the open latent.
const link = document.createElement('a');
const style = 'position:fixed;right:1rem;bottom:1rem;padding:.5rem .9rem;border-radius:8px;z-index:9;' +
  'background:#17599a;color:#fff;font:600 .9rem system-ui,sans-serif;text-decoration:none;box-shadow:0 1px 6px #0004';
link.setAttribute('style', style);
const follow = () => {
  const latent = /latent\.html$/.test(location.pathname) && /^#(\d+)/.exec(location.hash);
  link.href = latent ? `../?latent=${latent[1]}` : '../';
  link.textContent = latent ? `Steer latent ${latent[1]}` : 'Explorer';
};
addEventListener('hashchange', follow);
follow();
document.body.append(link);
