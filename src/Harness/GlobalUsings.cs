global using System;
global using System.Collections.Generic;
global using Tdp.Host;
global using Tdp.Mmu;
global using Tdp.Module;
global using Tdp.Platform;
global using Tdp.Sync;
